//! A client that asks at a fixed rate and says how long answers take.
//!
//! Each request has a time at which it is to be sent, whatever became of those before it, and its latency counts
//! from then on. A server that stalls is so charged for all the requests that had to wait, not for one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::SERVED_BY;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask, how often and who is to answer.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    connections: u32,
    /// Requests each second, on all connections together.
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: f64,
    /// One of so many requests carries the key; none if zero.
    #[arg(long, default_value_t = 0)]
    keyed: u32,
    /// Who answers requests without a key.
    #[arg(long)]
    shared: String,
    /// Who answers requests with one.
    #[arg(long)]
    diverted: String,
}

/// Prints the number of requests, and p50, p99 and the longest latency in microseconds.
pub(super) fn run(args: &Args) -> Result<()> {
    ensure!(args.rate > 0 && args.connections > 0, "nothing would be asked");
    // A sleep may else last 50 µs too long, which would be the most of what is measured.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let begin = Instant::now() + Duration::from_millis(50);
    let mut latencies = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..args.connections)
            .map(|number| scope.spawn(move || Connection::open(args)?.ask_all(args, number, begin)))
            .collect();
        let each = asking.into_iter().map(|it| it.join().unwrap_or_else(|_| bail!("a thread panicked")));
        Ok::<_, anyhow::Error>(each.collect::<Result<Vec<_>>>()?.concat())
    })?;
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    ensure!(!latencies.is_empty(), "no request was made");
    println!("{} {:.1} {:.1} {:.1}", latencies.len(), at(0.5), at(0.99), at(1.0));
    Ok(())
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(args: &Args) -> Result<Self> {
        let stream = TcpStream::connect(args.to).with_context(|| format!("connecting to {}", args.to))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; 4096] })
    }

    /// Asks at this connection's share of the times.
    fn ask_all(&mut self, args: &Args, number: u32, begin: Instant) -> Result<Vec<Duration>> {
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
        let (host, pace) = (args.to, 1.0 / f64::from(args.rate));
        let plain = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let keyed = format!("GET / HTTP/1.1\r\nHost: {host}\r\nbaggage: okteto-divert=alice\r\n\r\n");
        // The first request of a connection opens the way to the server, too: it is asked and not counted.
        self.ask(&plain, &args.shared)?;
        let mut latencies = Vec::new();
        for turn in (number..).step_by(args.connections as usize) {
            let after = f64::from(turn) * pace;
            if after >= args.seconds {
                break;
            }
            let intended = begin + Duration::from_secs_f64(after);
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            // By number of the connection's own request: each connection has both kinds.
            let own = turn / args.connections;
            if args.keyed > 0 && (own + number).is_multiple_of(args.keyed) {
                self.ask(&keyed, &args.diverted)?;
            } else {
                self.ask(&plain, &args.shared)?;
            }
            latencies.push(intended.elapsed());
        }
        Ok(latencies)
    }

    fn ask(&mut self, request: &str, by: &str) -> Result<()> {
        self.stream.write_all(request.as_bytes())?;
        let mut filled = 0;
        loop {
            let got = self.stream.read(&mut self.buffer[filled..]).context("waiting for an answer")?;
            ensure!(got > 0, "the connection was closed");
            filled += got;
            if let Some(answer) = whole(&self.buffer[..filled]) {
                let text = String::from_utf8_lossy(&self.buffer[..filled]);
                ensure!(answer.status == "200" && answer.by == by, "not answered by {by}, but: {text}");
                return Ok(());
            }
        }
    }
}

struct Answer<'a> {
    status: &'a str,
    by: &'a str,
}

/// An answer, once all of it is there. (Envoy writes names of fields in lower case.)
fn whole(bytes: &[u8]) -> Option<Answer<'_>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let field = |name: &str| {
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    };
    let length: usize = field("content-length")?.parse().ok()?;
    let status = head.split(' ').nth(1)?;
    (body.len() >= length).then(|| Answer { status, by: field(SERVED_BY).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        let answer = b"HTTP/1.1 200 OK\r\nX-Served-By: a/web\r\nContent-Length: 3\r\n\r\nok\n";
        assert!((1..answer.len()).all(|length| whole(&answer[..length]).is_none()));
        assert_eq!(whole(answer).map(|it| (it.status, it.by)), Some(("200", "a/web")));
    }
}
