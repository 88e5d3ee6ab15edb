//! HTTP/2 as an intermediary follows it that forwards frames: each request is decided by itself and goes to a server
//! of its own, over one connection of the client.
//!
//! [`mux`] is the whole of it, without I/O: bytes from the legs go in, bytes for the legs come out, and whoever owns
//! it decides requests and opens connections. What it rests on is apart: [`frame`], [`settings`], [`hpack`] and
//! [`fields`].

pub mod fields;
pub mod frame;
pub mod hpack;
pub mod mux;
pub mod queue;
mod response;
pub mod settings;

pub use fields::{Fields, RequestView};
pub use mux::{Dispatch, Fate, Handler, Leg, LocalReply, Mux, UpstreamId, Verdict};
