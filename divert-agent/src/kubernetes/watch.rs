//! One watch: its stream as steps, for ever, with back-off.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::objects::BackOff;
use super::sync::{Invalid, Step};
use crate::world::{Object, ObjectKind, ObjectRef};

/// A watch that has not failed for so long is connected: longer than the limit of connecting.
const SETTLED: Duration = Duration::from_secs(4);

/// A step of the watch of a kind.
#[derive(Debug)]
pub(super) struct Message {
    /// Which watch.
    pub(super) kind: ObjectKind,
    /// What it says.
    pub(super) step: Step,
    /// Of Diverts, the object as it is: who writes its status needs more than the world keeps.
    pub(super) original: Option<Box<DynamicObject>>,
}

/// An object, as the world wants it.
pub(super) type Converted = Result<(Object, Option<Box<DynamicObject>>), (Option<ObjectRef>, Invalid)>;

/// Forwards a watch of objects until the receiver is gone.
pub(super) async fn forward<K>(
    kind: ObjectKind,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    convert: impl Fn(K) -> Converted,
    steps: Sender<Message>,
) {
    let step = |event| match event {
        Event::Init => Some((Step::Begin, None)),
        Event::InitDone => Some((Step::Done, None)),
        Event::InitApply(object) | Event::Apply(object) => match convert(object) {
            Ok((object, original)) => Some((Step::Upsert(object), original)),
            Err((Some(reference), problem)) => Some((Step::Invalid(reference, problem), None)),
            Err((None, problem)) => {
                tracing::debug!("passing over an object of kind {kind}: {}", problem.problem);
                None
            }
        },
        Event::Delete(object) => match convert(object) {
            Ok((object, _)) => Some((Step::Delete(object.reference()), None)),
            Err((Some(reference), _)) => Some((Step::Delete(reference), None)),
            Err((None, _)) => None,
        },
    };
    follow(kind, stream, step, steps).await;
}

/// Sends what `step` makes of each event of a watch, and tells of its troubles, until the receiver is gone.
pub(super) async fn follow<K>(
    kind: ObjectKind,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    mut step: impl FnMut(Event<K>) -> Option<(Step, Option<Box<DynamicObject>>)>,
    steps: Sender<Message>,
) {
    let mut stream = pin!(stream);
    let mut back_off = BackOff::default();
    let mut failing = false;
    let send = |step, original| {
        let steps = &steps;
        async move { steps.send(Message { kind, step, original }).await.is_ok() }
    };
    loop {
        let next = match failing {
            false => stream.next().await,
            // The stream swallows what would show that it is well again: bookmarks.
            true => match timeout(SETTLED, stream.next()).await {
                Ok(next) => next,
                Err(_) => {
                    failing = false;
                    if !send(Step::Fine, None).await {
                        return;
                    }
                    continue;
                }
            },
        };
        let event = match next {
            None => return,
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                failing = true;
                if !send(Step::Trouble(describe(&error)), None).await {
                    return;
                }
                back_off.pause().await;
                continue;
            }
        };
        // That a list begins is said before anything is asked of the server.
        if !matches!(event, Event::Init) {
            back_off.reset();
            if std::mem::take(&mut failing) && !send(Step::Fine, None).await {
                return;
            }
        }
        if let Some((step, original)) = step(event)
            && !send(step, original).await
        {
            return;
        }
    }
}

/// In one clause, without the layers that say the same again.
pub(crate) fn describe(error: &watcher::Error) -> String {
    use watcher::Error;
    match error {
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
            super::describe(error)
        }
        Error::WatchError(status) => format!("the API server says: {}", status.message),
        Error::NoResourceVersion => error.to_string(),
    }
}

/// Lets a task be ended by dropping it.
#[derive(Debug)]
pub(super) struct Task(tokio::task::JoinHandle<()>);

impl Task {
    pub(super) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
