//! Budgets: how many connections the agent serves, of one pod and in all, and how many bytes it holds for them.
//!
//! Where there is no room for more connections, *new* ones go direct: a gate is closed that the connect hooks look at, so
//! nobody waits in a queue for a pod that takes everything. Below a low-water mark the gate is opened again. What came by
//! the gate a moment before it was closed is served, above the budget.
//!
//! Bytes are counted where they can exceed the block or two that every connection may have: heads, and what HTTP/2 keeps
//! for streams that wait. Who holds some is told when it is tight, and takes no more in then; it is
//! tight a quarter before the end, for what is under way by then.
//!
//! ```text
//! connections(agent) = Σ connections(pod)     held(agent) = Σ held(pod)
//! connections ≥ most          → the gate closes
//! connections ≤ 7/8 most      → it opens, unless descriptors are lacking
//! ```

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections served at a time; one at least.
    pub connections: u64,
    /// Bytes held for them beside their blocks.
    pub held: u64,
}

/// Lets new connections go direct (`true`), or no longer. One store in memory that the hooks read.
pub type Gate = Box<dyn Fn(bool) + Send + Sync>;

/// What a pod, or the agent as a whole, may use and uses.
pub struct Account {
    limits: Limits,
    connections: AtomicU64,
    held: AtomicU64,
    /// Something else than the number of connections has run out.
    exhausted: AtomicBool,
    closed: AtomicBool,
    /// Locked while it is closed or opened, so that the last to do so is the last to have looked.
    gate: Mutex<Gate>,
}

impl Account {
    /// Nothing is used.
    pub fn new(limits: Limits, gate: Gate) -> Self {
        Self {
            limits,
            connections: AtomicU64::new(0),
            held: AtomicU64::new(0),
            exhausted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            gate: Mutex::new(gate),
        }
    }

    /// Connections now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes held now, but for some KiB that holders have not told.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether new connections go direct.
    pub fn is_full(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn admit(&self) {
        if self.connections.fetch_add(1, Ordering::Relaxed) + 1 >= self.limits.connections && !self.is_full()
        {
            self.settle();
        }
    }

    fn dismiss(&self) {
        if self.connections.fetch_sub(1, Ordering::Relaxed) - 1 <= self.low_water() && self.is_full() {
            self.settle();
        }
    }

    /// Connections at which a closed gate opens: fewer than close it.
    fn low_water(&self) -> u64 {
        let few = (self.limits.connections / 8).max(1);
        self.limits.connections.saturating_sub(few)
    }

    fn settle(&self) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let (connections, closed) = (self.connections(), self.is_full());
        let full = connections > if closed { self.low_water() } else { self.limits.connections - 1 };
        let full = full || self.exhausted.load(Ordering::Relaxed);
        if full != closed {
            self.closed.store(full, Ordering::Relaxed);
            gate(full);
        }
    }

    /// Says that something is lacking that every connection needs: the gate is closed at once, until
    /// [`Account::look`] finds it again.
    pub fn exhausted(&self) {
        self.exhausted.store(true, Ordering::Relaxed);
        self.settle();
    }

    /// Looks whether what was lacking is there again. To be called now and then.
    pub fn look(&self, is_there: impl FnOnce() -> bool) {
        if self.exhausted.load(Ordering::Relaxed) && is_there() {
            self.exhausted.store(false, Ordering::Relaxed);
            self.settle();
        }
    }

    fn is_tight(&self) -> bool {
        self.held() > self.limits.held - self.limits.held / 4
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("limits", &self.limits)
            .field("connections", &self.connections())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// The two accounts that a connection is on.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Its pod's.
    pub pod: Arc<Account>,
    /// Of all pods.
    pub agent: Arc<Account>,
}

/// A connection that is served: counted as long as this lives.
#[derive(Debug)]
pub(super) struct Admitted(Accounts);

impl Admitted {
    pub(super) fn new(accounts: Accounts) -> Self {
        accounts.pod.admit();
        accounts.agent.admit();
        Self(accounts)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.pod.dismiss();
        self.0.agent.dismiss();
    }
}

/// How far what is held may differ from what the accounts know of it, in bytes: they are shared by all workers.
const GRAIN: u64 = 16 << 10;

/// Bytes that one session holds beside its blocks; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    accounts: Accounts,
    /// What the accounts know.
    told: u64,
}

impl Hold {
    /// Nothing yet, on these accounts.
    pub(super) fn new(accounts: &Accounts) -> Self {
        Self { accounts: accounts.clone(), told: 0 }
    }

    /// Says how many bytes are held now.
    pub(super) fn set(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        if bytes.abs_diff(self.told) < GRAIN && (bytes > 0 || self.told == 0) {
            return;
        }
        for account in [&self.accounts.pod, &self.accounts.agent] {
            // Wraps where it shrinks, and comes out right: no account falls below what was added to it.
            account.held.fetch_add(bytes.wrapping_sub(self.told), Ordering::Relaxed);
        }
        self.told = bytes;
    }

    /// Whether no more is to be taken in that would have to be held: for this pod, or for the agent.
    pub(super) fn is_tight(&self) -> bool {
        self.accounts.pod.is_tight() || self.accounts.agent.is_tight()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Connections that a limit of descriptors leaves room for. Each takes two, some of HTTP/2 more, for which a sixteenth is
/// kept; beside them there are the workers' pipes, listeners in each pod, and what everything else needs.
pub fn connections_within(descriptors: u64, workers: u64) -> u64 {
    /// What is not a connection's: eBPF objects, admin clients, watches; listeners and pipes, 128 of two ends.
    const OTHERS: u64 = 128;
    const EACH_WORKER: u64 = 256;
    const FEWEST: u64 = 16;
    let left = (descriptors - descriptors / 16).saturating_sub(OTHERS + workers * EACH_WORKER);
    (left / 2).max(FEWEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(connections: u64, held: u64) -> (Arc<Account>, Arc<Mutex<Vec<bool>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::clone(&told);
        let gate = Box::new(move |full| gate.lock().unwrap().push(full));
        (Arc::new(Account::new(Limits { connections, held }, gate)), told)
    }

    fn unlimited() -> Arc<Account> {
        account(u64::MAX, u64::MAX).0
    }

    #[test]
    fn the_gate_closes_at_the_limit_and_opens_an_eighth_below() {
        let (pod, told) = account(16, 0);
        let admit = || Admitted::new(Accounts { pod: Arc::clone(&pod), agent: unlimited() });
        let mut connections: Vec<_> = (0..15).map(|_| admit()).collect();
        assert!(!pod.is_full());
        connections.push(admit());
        assert!(pod.is_full());
        // That came by a moment before.
        connections.push(admit());
        connections.truncate(15);
        assert!(pod.is_full());
        connections.truncate(14);
        assert!(!pod.is_full());
        connections.extend((0..2).map(|_| admit()));
        assert_eq!(*told.lock().unwrap(), [true, false, true]);
    }

    #[test]
    fn one_pods_connections_are_the_agents_as_well() {
        let (agent, told) = account(4, 0);
        let pods = [unlimited(), unlimited()];
        let admit =
            |pod: &Arc<Account>| Admitted::new(Accounts { pod: Arc::clone(pod), agent: Arc::clone(&agent) });
        let connections: Vec<_> = pods.iter().cycle().take(4).map(admit).collect();
        assert!(agent.is_full() && !pods[0].is_full());
        assert_eq!((pods[0].connections(), agent.connections()), (2, 4));
        drop(connections);
        assert_eq!(*told.lock().unwrap(), [true, false]);
        assert_eq!((pods[0].connections(), agent.connections()), (0, 0));
    }

    #[test]
    fn what_is_lacking_closes_the_gate_until_it_is_there_again() {
        let (agent, told) = account(100, 0);
        agent.look(|| panic!("nothing is lacking"));
        agent.exhausted();
        agent.exhausted();
        agent.look(|| false);
        assert!(agent.is_full());
        agent.look(|| true);
        assert_eq!(*told.lock().unwrap(), [true, false]);
    }

    #[test]
    fn held_bytes_are_on_both_accounts_until_they_are_given_back() {
        let (pod, agent) = (account(1, 400 << 10).0, account(1, 1 << 20).0);
        let accounts = Accounts { pod: Arc::clone(&pod), agent: Arc::clone(&agent) };
        let (mut one, mut other) = (Hold::new(&accounts), Hold::new(&accounts));
        one.set(100);
        assert_eq!(pod.held(), 0, "not worth to be told");
        one.set(200 << 10);
        other.set(90 << 10);
        assert!(!one.is_tight());
        other.set(150 << 10);
        assert!(one.is_tight() && other.is_tight());
        assert_eq!((pod.held(), agent.held()), (350 << 10, 350 << 10));
        one.set(0);
        assert!(!other.is_tight());
        drop((one, other));
        assert_eq!((pod.held(), agent.held()), (0, 0));
    }

    #[test]
    fn a_limit_of_descriptors_leaves_room_for_the_rest() {
        assert_eq!(connections_within(1 << 20, 8), 490_432);
        assert_eq!(connections_within(3_000, 2), 1_086);
        assert_eq!(connections_within(0, 256), 16);
    }

    proptest! {
        /// Whatever comes and goes: the gate is closed at and above the limit, open at and below the low-water mark, and
        /// told of each change once.
        #[test]
        fn the_gate_is_as_the_number_says(
            most in 1..40_u64,
            steps in prop::collection::vec(any::<bool>(), 0..300),
        ) {
            let (pod, told) = account(most, 0);
            let mut connections = Vec::new();
            for come in steps {
                if come {
                    connections.push(Admitted::new(Accounts { pod: Arc::clone(&pod), agent: unlimited() }));
                } else {
                    connections.pop();
                }
                let number = connections.len() as u64;
                prop_assert_eq!(pod.connections(), number);
                prop_assert!(number < most || pod.is_full());
                prop_assert!(number > most - (most / 8).max(1) || !pod.is_full());
            }
            let told = told.lock().unwrap();
            prop_assert!(told.iter().enumerate().all(|(at, full)| *full == (at % 2 == 0)));
        }
    }
}
