//! Random scripts: any order of sends, half-closes, closes and resets that both sides can tell apart.
//!
//! Each action is seen by the other side before the next one is taken, so that two runs of one script
//! see the same. Both sides talking at once is one of the actions.

use super::{Script, Step};

/// Names for the turns: [`Step::Signal`] takes names that live as long as the program.
static TURNS: [&str; 24] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18",
    "19", "20", "21", "22", "23",
];

/// One side as the script is made.
#[derive(Default)]
struct Side {
    steps: Vec<Step>,
    finished: bool,
}

/// The script of a seed.
pub fn random(seed: u64) -> Script {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut client, mut server) = (Side::default(), Side::default());
    for turn in &TURNS[..random.usize(2..TURNS.len())] {
        let (one, other) =
            if random.bool() { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let over = match random.u8(..20) {
            0..12 if !one.finished => talk(&mut random, one, other),
            12..14 if !one.finished && !other.finished => both_talk(&mut random, one, other),
            14..16 if !one.finished => {
                one.steps.push(Step::Finish);
                other.steps.push(Step::ReadEnd);
                one.finished = true;
                other.finished
            }
            16 => {
                one.steps.push(Step::Reset);
                // A side that has read the end of the stream sees the reset when it writes.
                other.steps.push(match (one.finished, other.finished) {
                    (false, _) => Step::ReadEnd,
                    (true, false) => Step::SendUntilError,
                    (true, true) => Step::Close,
                });
                true
            }
            17 if !one.finished => {
                one.steps.push(Step::Close);
                other.steps.push(Step::ReadEnd);
                if !other.finished {
                    other.steps.push(Step::SendUntilError);
                }
                true
            }
            _ => false,
        };
        if over {
            break;
        }
        other.steps.push(Step::Signal(turn));
        one.steps.push(Step::Await(turn));
    }
    Script::new(client.steps, server.steps)
}

fn talk(random: &mut fastrand::Rng, one: &mut Side, other: &mut Side) -> bool {
    if random.u8(..4) == 0 {
        let (length, piece) = (random.usize(1..300_000), random.usize(1_000..100_000));
        one.steps.push(Step::SendBulk(length, random.u64(..)));
        other.steps.push(Step::ReadBulk(length, piece));
    } else {
        let bytes = bytes(random);
        other.steps.push(Step::expect(&bytes));
        let piece = random.usize(1..=bytes.len());
        one.steps.push(Step::Trickle(bytes, piece));
    }
    false
}

fn both_talk(random: &mut fastrand::Rng, one: &mut Side, other: &mut Side) -> bool {
    let (there, back) = (bytes(random), bytes(random));
    let (read_there, read_back) = (Step::expect(&there), Step::expect(&back));
    one.steps.extend([Step::Send(there), read_back]);
    other.steps.extend([Step::Send(back), read_there]);
    false
}

/// A few bytes that are not HTTP. (Text that begins like a request makes an HTTP connection, which has
/// rules of its own.)
fn bytes(random: &mut fastrand::Rng) -> Vec<u8> {
    let length = random.usize(1..200);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    bytes[0] = 0;
    bytes
}
