//! Refusals: destinations that have just refused a pod, which the connect hooks let refuse honestly for a while.
//!
//! A client that tries the addresses of a Service in turn goes on to the next when one refuses. Led to the agent it
//! would be accepted instead, and only then reset. So who was refused is noted by pod and label, in a table of words
//! that the agent has in its memory: a note is one store. Two that fall on one word oust each other, and what is
//! ousted is captured again, as ever.
//!
//! `SPLICED` has such words as well: destinations whose connections are led through the agent from the start for a while,
//! where they would be watched otherwise. Either as one of them could not be taken over, or as the destination does not
//! answer: then there is nothing to take over, and who is diverted can be served all the same.

use crate::label::INDEX_BITS;
use crate::map::POD_SLOT_BITS;

/// Length of `REFUSALS`.
pub const REFUSAL_COUNT: u32 = 1 << 12;
/// How long a refusal counts, in seconds.
pub const REFUSED_SECONDS: u64 = 5;
/// How long a destination counts that did not answer a connection that was to be watched.
pub const UNANSWERED_SECONDS: u64 = 10;
/// How long one counts of which a connection could not be taken over.
pub const NOT_TAKEN_SECONDS: u64 = 3600;

/// Bits of a word that are left for the time, in seconds of CLOCK_MONOTONIC: eight years of uptime.
const TIME_BITS: u32 = u64::BITS - POD_SLOT_BITS - INDEX_BITS;
const NANOS: u64 = 1_000_000_000;

/// The word of `REFUSALS` that is about this pod and label.
#[inline(always)]
pub const fn place(pod_slot: u32, label: u32) -> u32 {
    // Multiplicative hashing: labels and slots are both counted from zero.
    label.wrapping_add(pod_slot << INDEX_BITS).wrapping_mul(0x9e37_79b1) >> (u32::BITS - 12)
}

#[inline(always)]
const fn tag(pod_slot: u32, label: u32) -> u64 {
    (pod_slot as u64) << INDEX_BITS | label as u64
}

/// What is written there at `now`, in nanoseconds of CLOCK_MONOTONIC, to count for so many seconds.
#[inline(always)]
pub const fn note(pod_slot: u32, label: u32, now: u64, seconds: u64) -> u64 {
    // Rounded up: at least as long as it says.
    let until = now.div_ceil(NANOS) + seconds;
    tag(pod_slot, label) << TIME_BITS | until & ((1 << TIME_BITS) - 1)
}

/// Whether `word` is about this pod and label, and counts at `now`.
#[inline(always)]
pub const fn is_noted(word: u64, pod_slot: u32, label: u32, now: u64) -> bool {
    word >> TIME_BITS == tag(pod_slot, label) && now / NANOS < word & ((1 << TIME_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::INDEX_COUNT;
    use crate::map::POD_SLOT_COUNT;

    #[test]
    fn a_refusal_counts_for_its_pod_and_label_and_some_seconds() {
        let now = 12_345_678_901;
        let word = note(7, 42, now, REFUSED_SECONDS);
        assert!(is_noted(word, 7, 42, now));
        assert!(is_noted(word, 7, 42, now + REFUSED_SECONDS * NANOS));
        assert!(!is_noted(word, 7, 42, now + (REFUSED_SECONDS + 1) * NANOS));
        assert!(!is_noted(word, 8, 42, now) && !is_noted(word, 7, 43, now));
        assert!(!is_noted(0, 7, 42, now));
    }

    #[test]
    fn the_highest_pod_and_label_have_a_word_too() {
        let (slot, label) = (POD_SLOT_COUNT - 1, INDEX_COUNT - 1);
        assert!(is_noted(note(slot, label, 0, 1), slot, label, 0));
        for (slot, label) in [(0, 0), (1, 0), (slot, label), (slot, 0), (0, label)] {
            assert!(place(slot, label) < REFUSAL_COUNT);
        }
    }
}
