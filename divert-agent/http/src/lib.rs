//! HTTP/1 as an intermediary reads it.
