//! HTTP/2 by hand: frames, and ends of connections that play them.

pub mod conversation;
pub mod echo;
pub mod frame;
pub mod peer;
pub mod stage;

pub use frame::{Frame, code, flag, kind, setting};
pub use peer::{Event, H2, Head, Style, owned, request};
