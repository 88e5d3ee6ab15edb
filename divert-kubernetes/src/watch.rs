//! One watch: its stream as steps, for ever, with back-off.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use divert_core::world::{Object, ObjectKind, ObjectRef};
use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::objects::BackOff;
use super::sync::{Invalid, Step};

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
pub(super) type Converted = Result<(Object, Option<Box<DynamicObject>>), Unfit>;

/// Why an object is none of the world's.
#[derive(Debug)]
pub(super) enum Unfit {
    /// It says what it may not, which its author is told; of Diverts, with the object as it is.
    Invalid(Invalid, Option<Box<DynamicObject>>),
    /// It is nobody's, such as an EndpointSlice without a Service. Which nobody needs to know.
    Nobodys(String),
}

/// Forwards a watch of objects until the receiver is gone.
pub(super) async fn forward<K: ResourceExt>(
    kind: ObjectKind,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    convert: impl Fn(K) -> Converted,
    steps: Sender<Message>,
) {
    follow(kind, stream, |event| step(kind, event, &convert), steps).await;
}

/// What an event says. An object is known by its metadata, whatever else it says: one that was the world's and no
/// longer is one goes, and one that is deleted goes as well when its last version was none.
fn step<K: ResourceExt>(
    kind: ObjectKind,
    event: Event<K>,
    convert: &impl Fn(K) -> Converted,
) -> Option<(Step, Option<Box<DynamicObject>>)> {
    let reference = |object: &K| ObjectRef {
        kind,
        namespace: object.namespace().unwrap_or_default().into(),
        name: object.name_any().into(),
    };
    Some(match event {
        Event::Init => (Step::Begin, None),
        Event::InitDone => (Step::Done, None),
        Event::InitApply(object) | Event::Apply(object) => {
            let reference = reference(&object);
            match convert(object) {
                Ok((object, original)) => (Step::Upsert(object), original),
                Err(Unfit::Invalid(problem, original)) => (Step::Invalid(reference, problem), original),
                Err(Unfit::Nobodys(problem)) => {
                    let (namespace, name) = (&reference.namespace, &reference.name);
                    tracing::debug!("passing over {kind} {namespace}/{name}: {problem}");
                    (Step::Delete(reference), None)
                }
            }
        }
        Event::Delete(object) => (Step::Delete(reference(&object)), None),
    })
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
pub fn describe(error: &watcher::Error) -> String {
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::json;

    use super::super::kinds::convert;
    use super::*;

    fn slice(service: Option<&str>) -> EndpointSlice {
        let slice = json!({
            "metadata": {
                "name": "web-x", "namespace": "a",
                "labels": service.map(|name| json!({"kubernetes.io/service-name": name})),
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        });
        serde_json::from_value(slice).unwrap()
    }

    #[test]
    fn an_object_that_is_nobodys_any_more_is_taken_out_and_one_that_ended_so_as_well() {
        let kind = ObjectKind::EndpointSlice;
        let step = |event| step(kind, event, &convert::<EndpointSlice>).map(|(step, _)| step);
        let Some(Step::Upsert(object)) = step(Event::Apply(slice(Some("web")))) else {
            panic!("it is web's")
        };
        let is_gone = |step| matches!(step, Some(Step::Delete(gone)) if gone == object.reference());
        assert!(is_gone(step(Event::Apply(slice(None)))));
        assert!(is_gone(step(Event::InitApply(slice(None)))));
        assert!(is_gone(step(Event::Delete(slice(None)))));
        assert!(is_gone(step(Event::Delete(slice(Some("web"))))));
    }
}
