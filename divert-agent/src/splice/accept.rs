//! Accepting captured connections: the local address of an accepted socket says which service was meant.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use divert_common::label::Label;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::conn::Conn;
use super::counts::Count;
use super::session::Session;
use super::worker::Worker;
use super::{Handover, Listeners, Pod, age, dial};

/// Longest wait for a descriptor before accept looks again: others than this worker free some, too.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts on both listeners of a pod, until the tasks returned are aborted.
pub(super) fn start(worker: &Rc<Worker>, pod: &Arc<Pod>, listeners: Listeners) -> Vec<AbortHandle> {
    [listeners.v4, listeners.v6]
        .into_iter()
        .flatten()
        .filter_map(|listener| {
            let listener = Socket::from(listener);
            // Accepted sockets inherit the options, which spares the calls for each.
            let registered = tune(&listener).and_then(|()| {
                // SAFETY: a Socket owns its descriptor and lives in the AsyncFd until that is dropped.
                Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE)? })
            });
            match registered {
                Ok(listener) => {
                    let task = tokio::task::spawn_local(accept(Rc::clone(worker), Arc::clone(pod), listener));
                    Some(task.abort_handle())
                }
                Err(error) => {
                    // The listener closes with this, and the hook's gate sees that none is there.
                    tracing::error!(pod = %pod.pod, %error, "cannot serve a listener of this pod; its connections go direct");
                    None
                }
            }
        })
        .collect()
}

/// Sets the options of a client's connection.
fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    age::keep_alive(socket)?;
    // A request is acknowledged with its answer, which mostly comes at once: a segment less.
    Ok(rustix::net::sockopt::set_tcp_quickack(socket, false)?)
}

/// A connection, and the client's address.
fn accept_one(listener: &Socket) -> io::Result<(Socket, IpAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, client) = rustix::net::acceptfrom_with(listener, flags)?;
    let client = client.and_then(|address| SocketAddr::try_from(address).ok());
    Ok((socket.into(), client.ok_or(io::ErrorKind::AddrNotAvailable)?.ip()))
}

/// Accepts what has come before the hooks let go: closed with the listener, it would be reset.
fn accept_queued(worker: &Rc<Worker>, pod: &Arc<Pod>, listener: &Socket) {
    while let Ok((socket, client)) = accept_one(listener) {
        // One that was gone before it was served is none.
        let _ = serve(worker, pod, socket, client);
    }
}

async fn accept(worker: Rc<Worker>, pod: Arc<Pod>, listener: AsyncFd<Socket>) {
    loop {
        // Registered before the attempt: a descriptor freed in between is not missed, nor is the drain.
        let ended = worker.ended.notified();
        let drain_begun = worker.drain_begun.notified();
        if worker.draining() {
            accept_queued(&worker, &pod, listener.get_ref());
            drop(listener);
            worker.ended.notify_waiters();
            return;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.async_io(Interest::READABLE, accept_one) => accepted,
            () = drain_begun => continue,
        };
        match accepted {
            Ok((socket, client)) => {
                if let Err(error) = serve(&worker, &pod, socket, client) {
                    tracing::debug!(pod = %pod.pod, %error, "a connection was gone before it was served");
                }
            }
            Err(error) if dial::is_exhausted(&error) => {
                // New ones go direct from now on, and those that came by before do not wait for ever.
                worker.config.agent.exhausted();
                refuse_queued(&worker, listener.get_ref());
                let _ = tokio::time::timeout(RETRY, ended).await;
            }
            // What accept(2) reports of a connection that died in the queue is no reason to stop.
            Err(error) => {
                tracing::debug!(pod = %pod.pod, %error, "accept failed");
                if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
                    return;
                }
            }
        }
    }
}

/// Descriptors that must be there before connections are captured again.
const ROOM: usize = 32;

/// A descriptor of nothing; `None` where there is none left.
pub(super) fn spare() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

/// Whether there are descriptors again, more than one connection needs.
pub(super) fn has_room(worker: &Worker) -> bool {
    let mut kept = worker.spare.borrow_mut();
    if kept.is_none() {
        *kept = spare();
    }
    let room: Vec<_> = std::iter::repeat_with(spare).map_while(|it| it).take(ROOM).collect();
    kept.is_some() && room.len() == ROOM
}

/// Resets what is queued, each accepted by the descriptor in reserve.
fn refuse_queued(worker: &Worker, listener: &Socket) {
    let mut kept = worker.spare.borrow_mut();
    while kept.take().is_some()
        && let Ok((socket, _)) = accept_one(listener)
    {
        worker.counts.add(Count::Exhausted);
        // It is closed all the same.
        let _ = socket.set_linger(Some(Duration::ZERO));
        drop(socket);
        *kept = spare();
    }
    if kept.is_none() {
        *kept = spare();
    }
}

/// Serves a connection that was taken over.
pub(super) fn insert(worker: &Rc<Worker>, handover: Handover) {
    let Handover { pod, label, socket, client, ended } = handover;
    if let Err(error) = tune(&socket) {
        tracing::debug!(pod = %pod.pod, %error, "a connection was gone before it was served");
    }
    let conn = Conn::downstream(socket);
    worker.counts.add(Count::Accepted);
    let Some(claim) = worker.table.claim(label) else {
        worker.counts.add(Count::NoLabel);
        worker.counts.add(Count::Ended);
        conn.reset_on_close();
        return;
    };
    let owner = Rc::clone(worker);
    worker.spawn(&Arc::clone(&pod), move |seat| {
        let session = Session::new(owner, seat, pod, claim, conn, client).run();
        async move {
            let _ended = ended;
            session.await;
        }
    });
}

fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, socket: Socket, client: IpAddr) -> io::Result<()> {
    let conn = Conn::downstream(socket);
    let Some(local) = conn.local_addr()? else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    // From here on nothing fails: what is counted here is counted as ended, too.
    worker.counts.add(Count::Accepted);
    let ranges = &worker.config.ranges;
    let label: Option<Label> = match local.ip() {
        IpAddr::V4(address) => ranges.label_of_v4(address),
        IpAddr::V6(address) => ranges.label_of_v6(address),
    };
    let Some(claim) = label.and_then(|label| worker.table.claim(label)) else {
        worker.counts.add(Count::NoLabel);
        worker.counts.add(Count::Ended);
        conn.reset_on_close();
        return Ok(());
    };
    let (owner, pod) = (Rc::clone(worker), Arc::clone(pod));
    worker.spawn(&Arc::clone(&pod), move |seat| Session::new(owner, seat, pod, claim, conn, client).run());
    Ok(())
}
