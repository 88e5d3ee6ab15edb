//! Scanning a request head: does it carry a key, and where does the next one begin?
//!
//! What two readers could take differently is `Irregular`, and so is what would take long to follow: both are for the
//! agent, which reads them in full. A key is recognised by the beginning of its name, so the answer may be `Keyed` where
//! there is none: that costs the connection its short way and is never wrong. It is never `Plain` where there is one.
//!
//! State is in the memory of a map and not in registers: what the verifier does not know it need not tell apart. And what
//! is called from many places is a function of its own to it (global, kernel 5.6), which it looks at once.

use core::hint::black_box;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use divert_common::insert::{HEAD_BYTES, NAME_COUNT, Names, Prefix};

/// Words of eight bytes that hold a head, and one beyond to read across the end.
const WORDS: usize = HEAD_BYTES as usize / 8;
/// Words that one step of the loop looks at.
const STEP: usize = 4;

/// A head that is being scanned.
#[repr(C)]
struct Scan {
    words: [u64; WORDS + 2],
    /// Bytes of it that are there.
    length: u32,
    /// Where the current line begins.
    start: u32,
    /// Lines that have ended.
    lines: u32,
    /// Carriage returns seen.
    returns: u32,
    /// All ones while the current line is a `baggage` field.
    baggage: u64,
    /// A [`Verdict`], once there is one.
    verdict: u32,
    /// Length of the head, with `Plain`.
    head: u32,
    /// Length of the body.
    body: u32,
    /// Whether a Content-Length was seen.
    sized: u32,
    /// Whether keys count.
    keys: u32,
    reserved: u32,
}

/// What a head is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Its end was not found in the bytes that are there.
    Open = 0,
    /// Regular, and without a key: the next one begins behind its body.
    Plain = 1,
    /// It may carry a key, or asks who answers.
    Keyed = 2,
    /// To be read by the agent.
    Irregular = 3,
    /// Not the head of an HTTP/1 request.
    Foreign = 4,
}

/// A verdict in the upper word of a u64, and in the lower, with `Plain`, the length of head and body.
#[derive(Clone, Copy)]
pub struct Scanned(u64);

impl Scanned {
    #[inline(always)]
    pub fn is(self, verdict: Verdict) -> bool {
        self.0 >> 32 == verdict as u64
    }

    #[inline(always)]
    pub fn length(self) -> u32 {
        self.0 as u32
    }
}

#[map]
static SCANS: PerCpuArray<Scan> = PerCpuArray::with_max_entries(1, 0);

/// Names that carry a key. Written once, before a program is attached.
#[map]
static NAMES: Array<Names> = Array::with_max_entries(1, 0);

/// Scans the head that begins at `offset` of the packet, of which `length` bytes are there. Where `keys` is zero, nobody
/// wants to know of keys. `behind` is not zero where requests came before: then what does not look like another one is
/// `Foreign`, as it may belong to the last one's answer, which can end with its connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_head(skb: *mut __sk_buff, offset: u32, length: u32, keys: u32, behind: u32) -> u64 {
    let length = if length > HEAD_BYTES { HEAD_BYTES } else { length };
    let Some(scan) = SCANS.get_ptr_mut(0) else { return 0 };
    if length == 0 {
        return 0;
    }
    // From one to HEAD_BYTES, in a form that shows it to the verifier of Linux 6.1 as well.
    let length = (black_box(length - 1) & (HEAD_BYTES - 1)) + 1;
    // SAFETY: the element is this CPU's, and no other packet is looked at on it meanwhile: a device's egress runs with
    // soft interrupts off. It has room for HEAD_BYTES.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*scan).words).cast(), length) != 0 {
            return u64::from(Verdict::Irregular as u32) << 32;
        }
        (*scan).length = length;
        (*scan).start = 0;
        (*scan).lines = 0;
        (*scan).returns = 0;
        (*scan).baggage = 0;
        (*scan).verdict = Verdict::Open as u32;
        (*scan).head = 0;
        (*scan).body = 0;
        (*scan).sized = 0;
        (*scan).keys = keys;
        if !may_begin(&*scan) {
            return u64::from(Verdict::Foreign as u32) << 32;
        }
        let steps = length.div_ceil((8 * STEP) as u32);
        // The loop passes nothing on but memory of the stack, and what it looks at is elsewhere.
        let mut nothing = 0_u64;
        bpf_loop(steps, step as *mut core::ffi::c_void, (&raw mut nothing).cast(), 0);
        let verdict = read_volatile(&raw const (*scan).verdict);
        if verdict == Verdict::Open as u32 && behind != 0 && (*scan).lines == 0 && !begins_like_one(&*scan) {
            return u64::from(Verdict::Foreign as u32) << 32;
        }
        let length =
            read_volatile(&raw const (*scan).head).wrapping_add(read_volatile(&raw const (*scan).body));
        u64::from(verdict) << 32 | u64::from(length)
    }
}

/// Whether a client begins HTTP/2 (RFC 9113 3.4).
#[inline(always)]
pub fn is_http2(skb: *mut __sk_buff, offset: u32, length: u32) -> bool {
    let mut begin = [0_u8; 8];
    // SAFETY: there is room for eight bytes.
    length >= 8
        && unsafe { bpf_skb_load_bytes(skb.cast(), offset, begin.as_mut_ptr().cast(), 8) } == 0
        && u64::from_le_bytes(begin) == text(b"PRI * HT")
}

/// Wraps what `scan` returned; subprograms return whole words.
#[inline(always)]
pub fn scanned(word: u64) -> Scanned {
    Scanned(word)
}

/// Whether a request may begin so, or the blank line before one.
#[inline(always)]
fn may_begin(scan: &Scan) -> bool {
    let first = byte(scan, 0);
    matches!(first, b'\r' | b'\n' | b' ') || first.is_ascii_alphabetic()
}

/// Whether a line that has not ended begins like that of a request: a method in upper case, as all are, as far as it is there
/// or up to a space; or it is blank.
#[inline(always)]
fn begins_like_one(scan: &Scan) -> bool {
    let length = scan.length;
    let mut at = 0;
    while at < 16 {
        if at >= length {
            return true;
        }
        let byte = byte(scan, at);
        if !byte.is_ascii_uppercase() {
            return byte == b' ' && at != 0 || byte == b'\r' && at == 0;
        }
        at += 1;
    }
    false
}

/// Where a word has the byte: the upper bit of that byte, and perhaps of some above it.
#[inline(always)]
fn has(word: u64, wanted: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zero = word ^ (ONES * wanted as u64);
    zero.wrapping_sub(ONES) & !zero & (ONES << 7)
}

/// Looks at four words.
extern "C" fn step(index: u32, _: *mut u64) -> i64 {
    let Some(scan) = SCANS.get_ptr_mut(0) else { return 1 };
    let base = index as usize * STEP;
    if base > WORDS - STEP {
        return 1;
    }
    let mut at = 0;
    while at < STEP {
        // SAFETY: `base + at` is inside; volatile, as the verifier is to know nothing of what is there.
        let (word, baggage) = unsafe {
            (
                read_volatile((&raw const (*scan).words).cast::<u64>().add(base + at)),
                read_volatile(&raw const (*scan).baggage),
            )
        };
        if (has(word, b'\n') | has(word, b'\r') | has(word, b',') & baggage) != 0
            && word_of(scan, (base + at) as u32, word) != 0
        {
            return 1;
        }
        at += 1;
    }
    0
}

/// Looks at each byte of a word that has something in it. Not zero once there is a verdict.
#[inline(never)]
fn word_of(scan: *mut Scan, index: u32, word: u64) -> u64 {
    let mut word = word;
    let mut at = index * 8;
    let end = at + 8;
    while at < end {
        // SAFETY: fields of the element, which stays; by the pointer, as the functions below have it for their own meanwhile.
        let (length, baggage) =
            unsafe { (read_volatile(&raw const (*scan).length), read_volatile(&raw const (*scan).baggage)) };
        if at >= length {
            return 0;
        }
        let stop = match word as u8 {
            b'\r' => {
                // SAFETY: as above.
                unsafe { (*scan).returns += 1 };
                0
            }
            b'\n' => scan_line_end(at),
            b',' if baggage != 0 => scan_member(at + 1),
            _ => 0,
        };
        if stop != 0 {
            return 1;
        }
        word >>= 8;
        at += 1;
    }
    0
}

/// The byte at a place, of any place.
#[inline(always)]
fn byte(scan: &Scan, at: u32) -> u8 {
    // The compiler may know that the mask is of no use; the verifier does not.
    let at = black_box(at) & (HEAD_BYTES - 1);
    // SAFETY: the mask keeps it inside the words.
    unsafe { read_volatile((&raw const scan.words).cast::<u8>().add(at as usize)) }
}

/// The eight bytes from a place on, the first lowest.
#[inline(always)]
fn eight(scan: &Scan, at: u32) -> u64 {
    let at = black_box(at) & (HEAD_BYTES - 1);
    let word = black_box(at / 8) as usize & (WORDS - 1);
    let shift = at % 8 * 8;
    // SAFETY: there are two words more than the mask allows.
    let (low, high) = unsafe {
        let words = (&raw const scan.words).cast::<u64>();
        (read_volatile(words.add(word)), read_volatile(words.add(word + 1)))
    };
    if shift == 0 { low } else { low >> shift | high << (64 - shift) }
}

/// What a request line ends with, but for the last digit.
const VERSION: u64 = text(b" HTTP/1.");

/// Whether a word is that, of any version and in any case.
#[inline(always)]
fn is_version(word: u64) -> bool {
    (word | 0x2020_2020_2020_2020) & 0x0000_ffff_ffff_ffff == text(b" http/1.") & 0x0000_ffff_ffff_ffff
}

/// A word of eight bytes as `eight` reads it.
const fn text(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

#[inline(always)]
fn set(scan: &mut Scan, verdict: Verdict) -> u64 {
    // SAFETY: a field of the element; volatile, so that the verifier does not tell later steps apart by it.
    unsafe { write_volatile(&raw mut scan.verdict, verdict as u32) };
    1
}

/// A line has ended at the line feed at `at`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_line_end(at: u32) -> u64 {
    let Some(scan) = SCANS.get_ptr_mut(0) else { return 1 };
    // SAFETY: as in `scan_head`.
    let scan = unsafe { &mut *scan };
    let start = scan.start;
    if at == 0 || byte(scan, at.wrapping_sub(1)) != b'\r' || scan.returns != scan.lines.wrapping_add(1) {
        // At its beginning it is a blank line.
        let http = at == 0 || scan.lines != 0 || at > 11 && is_version(eight(scan, at.wrapping_sub(9)));
        return set(scan, if http { Verdict::Irregular } else { Verdict::Foreign });
    }
    let length = at.wrapping_sub(start);
    scan.lines += 1;
    if scan.lines == 1 {
        let verdict = request_line(scan, at);
        if verdict != 0 {
            return verdict;
        }
    } else if length == 1 {
        scan.head = at + 1;
        return set(scan, Verdict::Plain);
    }
    scan.start = at + 1;
    scan.baggage = 0;
    field(scan, at + 1)
}

/// The first line, which ends with the line feed at `at`.
#[inline(always)]
fn request_line(scan: &mut Scan, at: u32) -> u64 {
    // A blank line before a request, or what is too short to be one.
    if at < 13 {
        let blank = at == 1;
        return set(scan, if blank { Verdict::Irregular } else { Verdict::Foreign });
    }
    let version = eight(scan, at.wrapping_sub(10));
    // The last digit, and the carriage return, are what is left of the line.
    if version != VERSION || byte(scan, at.wrapping_sub(2)) & !1 != b'0' {
        // HTTP/2 begins with such a line, too (RFC 9113 3.4). There may be a space or a digit more behind it.
        let http = is_version(version) || is_version(eight(scan, at.wrapping_sub(11)));
        return set(scan, if http { Verdict::Irregular } else { Verdict::Foreign });
    }
    let first = byte(scan, 0);
    if !first.is_ascii_uppercase() || eight(scan, 0) == text(b"CONNECT ") {
        return set(scan, Verdict::Irregular);
    }
    0
}

/// A field begins at `at`, or the end of the head.
#[inline(always)]
fn field(scan: &mut Scan, at: u32) -> u64 {
    let name = eight(scan, at) | 0x2020_2020_2020_2020;
    let first = name as u8;
    // Continued lines (RFC 9112 5.2). A carriage return has the bit that makes letters lower case, too: `-`.
    let begin = byte(scan, at);
    if begin == b' ' || begin == b'\t' {
        return set(scan, Verdict::Irregular);
    }
    if scan.keys != 0 {
        if name == text(b"baggage:") {
            scan.baggage = u64::MAX;
            return scan_member(at + 8);
        }
        // With something between name and colon.
        if name & 0x00ff_ffff_ffff_ffff == text(b"baggage\0") {
            return set(scan, Verdict::Irregular);
        }
        if name == text(b"x-divert") || named(name, fields()) {
            return set(scan, Verdict::Keyed);
        }
    }
    match first {
        b'c' if name == text(b"content-") => content(scan, at),
        b'e' if name & 0x0000_ffff_ffff_ffff == text(b"expect\0\0") => set(scan, Verdict::Irregular),
        b't' if name == text(b"transfer") => set(scan, Verdict::Irregular),
        b'u' if name & 0x00ff_ffff_ffff_ffff == text(b"upgrade\0") && name >> 56 != b'-' as u64 => {
            set(scan, Verdict::Irregular)
        }
        _ => 0,
    }
}

/// A field that begins with `content-`.
#[inline(always)]
fn content(scan: &mut Scan, at: u32) -> u64 {
    let rest = eight(scan, at + 8) | 0x2020_2020_2020_2020;
    if rest & 0x0000_ffff_ffff_ffff != text(b"length\0\0") {
        return 0;
    }
    if scan.sized != 0 || byte(scan, at + 14) != b':' {
        return set(scan, Verdict::Irregular);
    }
    scan.sized = 1;
    let mut place = at + 15;
    let mut number: u64 = 0;
    let mut digits = 0;
    let mut turn = 0;
    while turn < 12 {
        let byte = byte(scan, place);
        if byte.is_ascii_digit() {
            number = number * 10 + u64::from(byte - b'0');
            digits += 1;
        } else if byte == b'\r' {
            break;
        } else if digits != 0 || byte != b' ' && byte != b'\t' {
            return set(scan, Verdict::Irregular);
        }
        place += 1;
        turn += 1;
    }
    // A body as long as half the sequence numbers could not be told from one that was sent already.
    if digits == 0 || turn == 12 || number >= 1 << 30 {
        return set(scan, Verdict::Irregular);
    }
    scan.body = number as u32;
    0
}

/// A member of `baggage` begins at `at`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_member(at: u32) -> u64 {
    let Some(scan) = SCANS.get_ptr_mut(0) else { return 1 };
    // SAFETY: as in `scan_head`.
    let scan = unsafe { &mut *scan };
    let mut place = at;
    let mut turn = 0;
    while turn < 4 {
        let byte = byte(scan, place);
        if byte != b' ' && byte != b'\t' {
            break;
        }
        place += 1;
        turn += 1;
    }
    if turn == 4 || named(eight(scan, place), members()) { set(scan, Verdict::Keyed) } else { 0 }
}

#[inline(always)]
fn members() -> Option<*const Prefix> {
    NAMES.get_ptr(0).map(|names| names.cast::<Prefix>())
}

#[inline(always)]
fn fields() -> Option<*const Prefix> {
    // SAFETY: inside the element, which has both lists.
    NAMES.get_ptr(0).map(|names| unsafe { names.cast::<Prefix>().add(NAME_COUNT) })
}

/// Whether a word begins with one of these names.
#[inline(always)]
fn named(word: u64, names: Option<*const Prefix>) -> bool {
    let Some(names) = names else { return true };
    let mut at = 0;
    while at < NAME_COUNT {
        // SAFETY: inside the list.
        let (bytes, mask) = unsafe {
            let name = names.add(at);
            (read_volatile(&raw const (*name).bytes), read_volatile(&raw const (*name).mask))
        };
        if mask == 0 {
            return false;
        }
        if word & mask == bytes {
            return true;
        }
        at += 1;
    }
    false
}
