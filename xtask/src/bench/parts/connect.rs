//! A client that measures connect(2): opens, resets, opens again. The reset leaves no TIME_WAIT behind, so neither
//! ports nor memory run out, whatever the rate.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;

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
    }
    println!("{made} {}", began.elapsed().as_secs_f64());
    Ok(())
}
