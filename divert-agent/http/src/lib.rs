//! HTTP as an intermediary reads it that forwards the same bytes. HTTP/2 is in [`h2`]; the rest here is HTTP/1.
//!
//! Nothing here does I/O, and no message is written anew: a head is read to decide where it goes and
//! where the next message begins, then the bytes are passed on as they came. That sets the measure of
//! strictness. A proxy that rebuilds messages may repair what is odd; one that forwards them must be
//! sure that whoever reads the same bytes next finds the same end of message. So there are three
//! answers to a head:
//!
//! - its framing is certain, and followed. That it is not by the grammar elsewhere (a name that is no token, a control
//!   character in a value) changes nothing: it is forwarded as it came, and read by what of it is regular;
//! - it is *irregular*: two readers could take its lines apart differently (bare LF, line folding, a space before a
//!   colon). Whoever asked may pass it on with all that follows, as the last thing on its connection;
//! - its framing is *ambiguous*: two readers may disagree about where it ends, which is what request
//!   smuggling lives on. RFC 9112 asks for 400 and the end of the connection.
//!
//! The order of reading: [`detect`] says whether a connection is HTTP/1 at all, [`request`] and
//! [`response`] read heads, [`body`] follows what comes after them. Two changes are made to heads of
//! requests, each leaving every other byte as it was: [`h2c`] removes an offer, [`inject`] adds a key.
//!
//! No allocation happens for a regular head of up to 64 fields whose key has no percent sign. What is
//! read in parts is not read twice: [`HeadScan`] and [`ClientDetector`] remember how far they came.
//!
//! ```
//! use divert_http::{BodyReader, HeadScan, KeyNames, Request, parse_request};
//!
//! let names = KeyNames::default();
//! let mut scan = HeadScan::new();
//! let stream = b"POST / HTTP/1.1\r\nHost: catalog\r\nBaggage: okteto-divert=alice\r\n\
//!     Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
//!
//! assert_eq!(parse_request(&stream[..20], &mut scan, &names), Request::Partial);
//! let Request::Head(head) = parse_request(stream, &mut scan, &names) else { panic!("a regular head") };
//! assert_eq!(head.key.as_deref(), Some("alice"));
//!
//! let rest = &stream[head.len..];
//! let body = BodyReader::new(head.body).advance(rest)?;
//! assert!(body.done);
//! assert!(rest[body.consumed..].starts_with(b"GET"));
//! # Ok::<(), divert_http::ChunkError>(())
//! ```

pub mod baggage;
pub mod body;
pub mod detect;
mod field;
pub mod framing;
pub mod h2;
pub mod h2c;
pub mod head;
pub mod inject;
mod irregular;
mod lines;
mod odd;
pub mod request;
pub mod response;
pub mod upgrade;

pub use baggage::{KeyNames, KeyNamesError, find_key};
pub use body::{Advance, BodyReader, ChunkError};
pub use detect::{ClientBytes, ClientDetector, ServerBytes, detect_client, detect_server};
pub use framing::{BodyLength, FramingError};
pub use h2c::strip_h2c_offer;
pub use head::{HeadScan, MAX_FIELDS, MAX_HEAD};
pub use inject::inject_key;
pub use irregular::{Irregularity, lenient_key};
pub use request::{Method, Request, RequestHead, parse_request};
pub use response::{Asked, Response, ResponseHead, ResponseKind, parse_response};
pub use upgrade::offered_protocols;
