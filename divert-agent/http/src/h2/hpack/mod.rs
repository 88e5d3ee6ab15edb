//! HPACK (RFC 7541): a decoder that follows a peer's encoder, and an encoder without state.
//!
//! The decoder is our own; Huffman coding is that of the crate `octets`. Of the decoders that are published by
//! themselves none fits: httlib-hpack 0.1 reads past the end of a block that is cut short (it panics), loona-hpack
//! 0.4 builds its Huffman table for each string and does not tell which fields must never be indexed.

mod decode;
pub mod encode;
mod static_table;

pub use decode::{Decoder, HpackError, MAX_TABLE, SizeUpdates};

#[cfg(test)]
mod tests;
