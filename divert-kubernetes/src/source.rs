//! The watches of a cluster together, in batches.

use std::collections::BTreeMap;

use divert_core::world::{DivertApi, ObjectKind, ObjectRef, RouteKind, World, WorldChange};
use kube::Client;
use kube::api::DynamicObject;
use tokio::sync::mpsc::{Receiver, channel};

use super::definitions::{self, Defined};
use super::kinds;
use super::sync::{Invalid, Sync};
use super::watch::{Message, Task};

/// Steps on their way: a long list waits for its reader.
const IN_FLIGHT: usize = 1024;
/// Steps taken at once. Changes that come together are compiled together.
const BATCH: usize = 4096;

/// A cluster that is followed; dropping it ends that. Lives in the runtime of who made it.
#[derive(Debug)]
pub struct Source {
    steps: Receiver<Message>,
    sync: Sync,
    _tasks: Vec<Task>,
}

/// What watches have said.
#[derive(Debug)]
pub struct Messages(Vec<Message>);

/// What has come since the last batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the world.
    pub changes: Vec<WorldChange>,
    /// Diverts that came or changed, whole; those as well that say what they may not, and so are gone for the world.
    pub originals: Vec<(ObjectRef, Box<DynamicObject>)>,
}

impl Source {
    /// Begins to watch all that compile needs; Pods only of `node`, and none without it. Whoever serves a node
    /// does without okteto's Diverts where they cannot be listed: their definition, and the webhook that it may need,
    /// is not ours. Whoever writes waits for them, as it would else take back the names that are theirs.
    pub fn start(client: &Client, node: Option<&str>) -> Self {
        let (sender, steps) = channel(IN_FLIGHT);
        let groups = [DivertApi::Divert, DivertApi::Okteto].map(Defined::Divert);
        let defined = || groups.into_iter().chain(RouteKind::ALL.map(Defined::Route));
        let kinds = kinds::BUILT_IN
            .into_iter()
            .chain(node.map(|_| ObjectKind::Pod))
            .chain(defined().map(ObjectKind::from));
        let mut sync = Sync::new(kinds);
        if node.is_some() {
            sync = sync.dispensing_with(ObjectKind::Divert(DivertApi::Okteto));
        }
        for kind in RouteKind::ALL {
            sync = sync.dispensing_with(ObjectKind::Route(kind));
        }
        let mut tasks = kinds::start(client, node, &sender);
        tasks.extend(defined().map(|kind| definitions::start(client, kind, &sender)));
        Self { steps, sync, _tasks: tasks }
    }

    /// Waits for something to come, and takes what else has: for [`Source::take`], before anything else comes. Never
    /// ends by itself; safe to be dropped half-way.
    pub async fn come(&mut self) -> Messages {
        let mut messages = Vec::new();
        self.steps.recv_many(&mut messages, BATCH).await;
        Messages(messages)
    }

    /// What has come, for a world with all former batches applied.
    pub fn take(&mut self, world: &World, Messages(messages): Messages) -> Batch {
        self.sync.begin_batch();
        let mut batch = Batch::default();
        for Message { kind, step, original } in messages {
            let changes = self.sync.take(world, kind, step);
            // What went in the same batch has no original any more.
            for change in &changes {
                if let WorldChange::Delete(gone) = change {
                    batch.originals.retain(|(object, _)| object != gone);
                }
            }
            let object = changes.first().map(|change| match change {
                WorldChange::Upsert(object) => object.reference(),
                WorldChange::Delete(object) => object.clone(),
            });
            batch.originals.extend(object.zip(original));
            batch.changes.extend(changes);
        }
        batch
    }

    /// Both of these.
    pub async fn next(&mut self, world: &World) -> Batch {
        let messages = self.come().await;
        self.take(world, messages)
    }

    /// Whether everything has been listed once.
    pub fn is_complete(&self) -> bool {
        self.sync.is_complete()
    }

    /// What keeps the cluster from being followed right now, in sentences.
    pub fn troubles(&self) -> Vec<String> {
        self.sync.troubles()
    }

    /// Those of them that leave what is known older than the cluster.
    pub fn stale(&self) -> Vec<String> {
        self.sync.stale()
    }

    /// Which lists are still to come, in sentences.
    pub fn awaited(&self) -> Vec<String> {
        self.sync.awaited()
    }

    /// Diverts that say what they may not, and what.
    pub fn invalid(&self) -> &BTreeMap<ObjectRef, Invalid> {
        self.sync.invalid()
    }
}
