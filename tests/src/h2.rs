//! HTTP/2 by hand: frames, and ends of connections that play them.

pub mod conversation;
pub mod echo;
pub mod frame;
pub mod head;
pub mod peer;
pub mod stage;

pub use frame::{Frame, code, flag, kind, setting};
pub use head::{Event, Field, Head, Style, owned, request};
pub use peer::H2;
