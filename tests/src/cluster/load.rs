//! Steady requests from pods, with and without keys in turn, on connections that are kept and on new ones; and who
//! answered them. Nothing is asked twice, so that what an ordinary client would pass over is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Cluster;
use super::app::{PORT, Running};
use crate::kube::Client;

/// Ends the loads.
const STOP: &str = "/tmp/stop";

/// Requests under way, from some pods.
#[derive(Debug)]
pub struct Load {
    client: Client,
    pods: Vec<Running>,
    threads: Vec<JoinHandle<Result<Tally>>>,
}

/// What requests came to, by `MODE KEY RESULT`: mode is `kept` or `new`, the key `-` where there is none, and the result
/// the name that answered, or `failed: ` and why.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Tally {
    /// How many.
    pub count: BTreeMap<String, usize>,
    /// When the first and the last of them began, in milliseconds of Unix time.
    pub span: BTreeMap<String, (u64, u64)>,
    /// How long the slowest took, in milliseconds.
    pub slowest: u64,
}

impl Load {
    /// Begins, from each of these pods to a service, with these keys.
    pub fn start(cluster: &Cluster, pods: &[Running], host: &str, keys: &[&str]) -> Self {
        let url = format!("http://{host}:{PORT}/");
        let start = |pod: &Running| {
            let mut words: Vec<_> =
                ["exec", "--namespace", &pod.namespace, &pod.name, "--", "tiny", "load", STOP, &url]
                    .map(str::to_owned)
                    .into();
            words.extend(keys.iter().map(|&key| key.to_owned()));
            let client = cluster.client().clone();
            let (name, node) = (pod.name.clone(), pod.node.clone());
            thread::spawn(move || {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let said = client.kubectl(&words, "")?;
                serde_json::from_str(&said).with_context(|| format!("{name} on {node} said {said:?}"))
            })
        };
        let threads = pods.iter().map(start).collect();
        Self { client: cluster.client().clone(), pods: pods.to_vec(), threads }
    }

    /// Ends it, and says what came of all.
    ///
    /// # Errors
    /// When a client has ended before, or cannot be told.
    pub fn stop(mut self) -> Result<Tally> {
        self.tell(&["touch", STOP])?;
        let mut all = Tally::default();
        for thread in self.threads.drain(..) {
            let Ok(tally) = thread.join() else { bail!("a thread of the load has panicked") };
            all.add(tally?);
        }
        // Another may follow.
        self.tell(&["busybox", "rm", STOP])?;
        Ok(all)
    }

    fn tell(&self, words: &[&str]) -> Result<()> {
        for pod in &self.pods {
            let exec = ["exec", "--namespace", &pod.namespace, &pod.name, "--"];
            self.client.kubectl(&[&exec[..], words].concat(), "")?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The pods end with their cluster; threads would else wait for that.
        if !self.threads.is_empty() {
            let _ = self.tell(&["touch", STOP]);
        }
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (what, count) in other.count {
            *self.count.entry(what).or_default() += count;
        }
        for (what, (first, last)) in other.span {
            let span = self.span.entry(what).or_insert((first, last));
            *span = (span.0.min(first), span.1.max(last));
        }
        self.slowest = self.slowest.max(other.slowest);
    }

    /// How many there are of a mode and a key, of all where one is empty, whose result begins so.
    pub fn of(&self, mode: &str, key: &str, result: &str) -> usize {
        let meant = |what: &str| {
            let mut words = what.splitn(3, ' ');
            let mut next = || words.next().unwrap_or_default();
            let (its_mode, its_key, its_result) = (next(), next(), next());
            (mode.is_empty() || its_mode == mode)
                && (key.is_empty() || its_key == key)
                && its_result.starts_with(result)
        };
        self.count.iter().filter(|(what, _)| meant(what)).map(|(_, count)| count).sum()
    }

    /// All of them.
    pub fn all(&self) -> usize {
        self.count.values().sum()
    }

    /// From the first to the last of one kind.
    pub fn between(&self, mode: &str, key: &str, result: &str) -> Duration {
        let span = self.span.get(&format!("{mode} {key} {result}"));
        Duration::from_millis(span.map_or(0, |(first, last)| last - first))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, the slowest {} ms", self.all(), self.slowest)?;
        for (what, count) in &self.count {
            write!(f, "\n  {what}: {count}")?;
        }
        Ok(())
    }
}
