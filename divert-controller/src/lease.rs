//! Which of several controllers writes: the one that holds a Lease (coordination.k8s.io/v1).
//!
//! As in client-go, another's Lease is expired when it has not changed for its duration by our own clock; a
//! holder stops writing some seconds before others may take it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use divert_kubernetes::describe;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// What a write is given until it is answered. What is begun in the last moment of leading has arrived, or
/// never does, before another leads.
pub(super) const WRITE: Duration = Duration::from_secs(4);
/// Others may take a Lease that has not changed for so long.
const DURATION: Duration = Duration::from_secs(15);
/// Who has not renewed for so long stops writing.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// A look that is not answered is given up, so that the next can go by another connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks, and between two renewals.
const PACE: Duration = Duration::from_secs(2);
/// For so long nobody leads after the lease was taken for good.
const TAKEN_FOR: Duration = Duration::from_secs(300);

/// Whether this controller may write.
#[derive(Clone, Debug)]
pub(super) struct Leadership {
    until: Arc<Mutex<Option<Instant>>>,
}

impl Leadership {
    /// Of who has [`take`]n the Lease.
    pub(super) fn taken() -> Self {
        Self { until: Arc::new(Mutex::new(Some(Instant::now() + TAKEN_FOR))) }
    }

    /// To be asked before each write.
    pub(super) fn is_held(&self) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Writes that are to come are none any more.
    pub(super) fn resign(&self) {
        self.set(None);
    }

    /// The lease is held again.
    #[cfg(test)]
    pub(super) fn regain(&self) {
        self.set(Some(Instant::now() + TAKEN_FOR));
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// Takes the Lease from whoever has it, for five minutes. The former holder may write for [`DEADLINE`] longer, if it
/// does not hear of it.
pub(super) async fn take(api: &Api<Lease>, name: &str, identity: &str) -> kube::Result<()> {
    let lease = api.get_opt(name).await?;
    let operation = if lease.is_some() { Operation::Take } else { Operation::Create };
    let mut lease = next(lease, operation, name, identity);
    if let Some(spec) = lease.spec.as_mut() {
        spec.lease_duration_seconds = i32::try_from(TAKEN_FOR.as_secs()).ok();
    }
    match operation {
        Operation::Create => api.create(&PostParams::default(), &lease).await.map(drop),
        _ => api.replace(name, &PostParams::default(), &lease).await.map(drop),
    }
}

/// How an elector stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Election {
    /// The term that it leads in, if it does.
    pub(super) term: Option<Term>,
    /// What keeps it from the Lease, in a sentence.
    pub(super) trouble: Option<Trouble>,
}

/// A time of leading. A renewal that came late begins another: what was to be written in between was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Term {
    number: u64,
    /// Nobody else has led since the last one.
    pub(super) resumed: bool,
}

/// What keeps an elector from the Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    pub(super) sentence: String,
    /// Whether the API server refuses, which does not pass by itself.
    pub(super) is_refusal: bool,
}

/// Seeks the Lease and keeps it.
pub(super) struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    election: watch::Sender<Election>,
}

/// What to do about a Lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Create,
    Take,
    Renew,
    Wait,
}

fn operation(lease: Option<&Lease>, identity: &str, unchanged_for: Duration) -> Operation {
    let Some(lease) = lease else { return Operation::Create };
    let spec = lease.spec.clone().unwrap_or_default();
    let duration = spec
        .lease_duration_seconds
        .and_then(|it| u64::try_from(it).ok())
        .map_or(DURATION, Duration::from_secs);
    match spec.holder_identity.as_deref().unwrap_or_default() {
        "" => Operation::Take,
        holder if holder == identity => Operation::Renew,
        _ if unchanged_for >= duration => Operation::Take,
        _ => Operation::Wait,
    }
}

/// The Lease as it is to be, held by `identity`, or by nobody.
fn next(lease: Option<Lease>, operation: Operation, name: &str, identity: &str) -> Lease {
    let mut lease = lease.unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: None,
    });
    let now = Some(MicroTime(Timestamp::now()));
    let mut spec: LeaseSpec = lease.spec.take().unwrap_or_default();
    if operation != Operation::Renew {
        spec.acquire_time.clone_from(&now);
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count + 1));
    }
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.renew_time = now;
    lease.spec = Some(spec);
    lease
}

impl Elector {
    pub(super) fn new(
        api: Api<Lease>,
        name: &str,
        identity: String,
    ) -> (Self, Leadership, watch::Receiver<Election>) {
        let leadership = Leadership { until: Arc::default() };
        let (election, receiver) = watch::channel(Election::default());
        let it = Self { api, name: name.to_owned(), identity, leadership: leadership.clone(), election };
        (it, leadership, receiver)
    }

    /// For ever.
    pub(super) async fn run(&self) {
        let mut seen: (Option<String>, Instant) = (None, Instant::now());
        let mut term = Term { number: 0, resumed: false };
        loop {
            let began = Instant::now();
            let looked = timeout(PATIENCE, self.look(&mut seen)).await;
            let trouble = match &looked {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(self.trouble(error)),
                Err(_) => Some(Trouble {
                    sentence: format!("the lease {}: no answer within {PATIENCE:?}", self.name),
                    is_refusal: false,
                }),
            };
            match looked {
                Ok(Ok(Some(operation))) => {
                    if !self.leadership.is_held() {
                        term = Term { number: term.number + 1, resumed: operation == Operation::Renew };
                    }
                    self.leadership.set(Some(began + DEADLINE));
                }
                Ok(Ok(None)) => self.leadership.set(None),
                // What was last renewed holds until its deadline.
                _ => {}
            }
            let term = self.leadership.is_held().then_some(term);
            self.report(Election { term, trouble });
            sleep(PACE).await;
        }
    }

    /// Says what is news.
    fn report(&self, election: Election) {
        self.election.send_if_modified(|before| {
            match (before.term, election.term) {
                (None, Some(_)) => tracing::info!("leading, as {}", self.identity),
                (Some(_), None) => tracing::info!("not leading, as {}", self.identity),
                (Some(old), Some(new)) if old != new => {
                    tracing::info!("leading anew, as {}: the lease was renewed late", self.identity);
                }
                _ => {}
            }
            match &election.trouble {
                trouble if *trouble == before.trouble => {}
                Some(Trouble { sentence, is_refusal: true }) => tracing::warn!("{sentence}"),
                // Which is told of the watches as well.
                Some(Trouble { sentence, .. }) => tracing::debug!("{sentence}"),
                None if before.trouble.as_ref().is_some_and(|it| it.is_refusal) => {
                    tracing::info!("the lease {} can be had again", self.name);
                }
                None => {}
            }
            std::mem::replace(before, election.clone()) != election
        });
    }

    fn trouble(&self, error: &kube::Error) -> Trouble {
        let said = describe(error);
        let is_refusal =
            matches!(error, kube::Error::Api(it) if (400..500).contains(&it.code) && it.code != 429);
        let sentence = match is_refusal {
            true => format!(
                "the lease {} cannot be had, and without it this controller writes nothing: {said}; its Role is to let it \
                 get, update and create leases in its own namespace",
                self.name
            ),
            false => format!("the lease {}: {said}", self.name),
        };
        Trouble { sentence, is_refusal }
    }

    /// Lets another have the Lease at once. In vain, it waits for the Lease to expire.
    pub(super) async fn release(&self) {
        self.leadership.set(None);
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            // An error says that somebody else holds it by now, or that the API server is away.
            let _ = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        }
    }

    /// By what the Lease is ours afterwards, if it is.
    async fn look(&self, seen: &mut (Option<String>, Instant)) -> kube::Result<Option<Operation>> {
        let lease = self.api.get_opt(&self.name).await?;
        let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if seen.0 != version {
            *seen = (version, Instant::now());
        }
        let operation = operation(lease.as_ref(), &self.identity, seen.1.elapsed());
        let lease = next(lease, operation, &self.name, &self.identity);
        // The resource version goes along: of two who take it at once, one is told Conflict.
        let written = match operation {
            Operation::Wait => return Ok(None),
            Operation::Create => self.api.create(&PostParams::default(), &lease).await,
            Operation::Take | Operation::Renew => {
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(Some(operation)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_not_moved_for_its_duration() {
        let held_by = |holder: &str| next(None, Operation::Create, "divert", holder);
        let (short, long) = (Duration::from_secs(14), Duration::from_secs(15));
        assert_eq!(operation(None, "me", short), Operation::Create);
        assert_eq!(operation(Some(&held_by("me")), "me", long), Operation::Renew);
        assert_eq!(operation(Some(&held_by("other")), "me", short), Operation::Wait);
        assert_eq!(operation(Some(&held_by("other")), "me", long), Operation::Take);
        assert_eq!(operation(Some(&held_by("")), "me", short), Operation::Take);
        assert_eq!(operation(Some(&Lease::default()), "me", short), Operation::Take);
    }

    #[test]
    fn transitions_are_counted_and_the_time_of_acquiring_kept() {
        let first = next(None, Operation::Create, "divert", "a");
        let renewed = next(Some(first.clone()), Operation::Renew, "divert", "a");
        let (first, renewed_spec) = (first.spec.unwrap(), renewed.spec.clone().unwrap());
        assert_eq!(first.acquire_time, renewed_spec.acquire_time);
        assert_eq!(renewed_spec.lease_transitions, Some(0));
        let taken = next(Some(renewed), Operation::Take, "divert", "b").spec.unwrap();
        assert_eq!((taken.lease_transitions, taken.holder_identity.as_deref()), (Some(1), Some("b")));
    }

    #[test]
    fn who_leads_stops_before_others_may_begin() {
        assert!(DEADLINE + WRITE < DURATION);
    }
}
