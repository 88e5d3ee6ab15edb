//! A client that measures connect(2): opens, resets, opens again. The reset leaves no TIME_WAIT behind, so neither
//! ports nor memory run out, whatever the rate.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;

/// Connects after which the server is asked something: it answers once it has accepted all before, so that they never
/// fill its queue. What overflows there is sent again by the kernel after a second, and that is not to be measured.
const BATCH: u64 = 256;
/// Longest wait for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to, and for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    seconds: f64,
}

/// Prints the number of connects and the seconds that they took.
pub(super) fn run(args: &Args) -> Result<()> {
    let (began, limit) = (Instant::now(), Duration::from_secs_f64(args.seconds));
    let mut made = 0_u64;
    while began.elapsed() < limit {
        let stream = TcpStream::connect(args.to).with_context(|| format!("connecting to {}", args.to))?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        made += 1;
        if made.is_multiple_of(BATCH) {
            await_accepted(args.to).context("waiting for the server to accept")?;
        }
    }
    println!("{made} {}", began.elapsed().as_secs_f64());
    Ok(())
}

fn await_accepted(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}
