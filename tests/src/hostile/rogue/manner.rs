//! How something is said, and what is done then.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::super::wire;

/// How bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manner {
    /// At once.
    Whole,
    /// In pieces of so many bytes, a few milliseconds apart; the last come at once.
    Slowly(usize),
    /// So many percent of them, and no more.
    Cut(u8),
}

/// What is done when the bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// Neither reads nor writes for so long, and closes.
    Stall(Duration),
    /// Reads for so long, and closes.
    Read(Duration),
    /// Sends FIN, reads for so long, and closes.
    Finish(Duration),
    /// Closes, which is a reset where something is unread.
    Close,
    /// Closes with a reset, after a moment.
    Reset(Duration),
}

/// Nobody waits longer to be rid of what there is to say.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pieces that are sent slowly.
const PIECES: usize = 40;

impl Manner {
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        match random.u8(..10) {
            0..6 => Self::Whole,
            6..8 => Self::Slowly(random.usize(1..30)),
            _ => Self::Cut(random.u8(..100)),
        }
    }

    /// Sends; as far as it goes where the other side does not read, while reading nothing.
    pub(super) async fn say(self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        let send = async {
            match self {
                Self::Whole => stream.write_all(bytes).await,
                Self::Cut(percent) => {
                    stream.write_all(&bytes[..bytes.len() * usize::from(percent) / 100]).await
                }
                Self::Slowly(size) => {
                    let (slow, rest) = bytes.split_at(bytes.len().min(size * PIECES));
                    for piece in slow.chunks(size) {
                        stream.write_all(piece).await?;
                        sleep(Duration::from_millis(5)).await;
                    }
                    stream.write_all(rest).await
                }
            }
        };
        timeout(PATIENCE, send).await.unwrap_or(Ok(()))
    }
}

impl Then {
    /// Mostly something short, and now and then something that lasts.
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        let most = if random.u8(..4) == 0 { 8_000 } else { 500 };
        let time = Duration::from_millis(random.u64(1..most));
        match random.u8(..8) {
            0..2 => Self::Stall(time),
            2..4 => Self::Read(time),
            4 => Self::Finish(time),
            5 => Self::Close,
            _ => Self::Reset(time.min(Duration::from_millis(100))),
        }
    }

    /// Does it. What is read is shown to `see`.
    pub(super) async fn act(self, mut stream: TcpStream, see: impl FnMut(&[u8])) {
        match self {
            Self::Stall(time) => sleep(time).await,
            Self::Read(time) => read(&mut stream, time, see).await,
            Self::Finish(time) => {
                let _ = stream.shutdown().await;
                read(&mut stream, time, see).await;
            }
            Self::Close => {}
            Self::Reset(time) => {
                sleep(time).await;
                wire::reset(stream);
            }
        }
    }
}

/// Reads for so long, or to the end.
pub(super) async fn read(stream: &mut TcpStream, time: Duration, mut see: impl FnMut(&[u8])) {
    let mut piece = vec![0; 16 << 10];
    let all = async {
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            see(&piece[..count]);
        }
    };
    let _ = timeout(time, all).await;
}
