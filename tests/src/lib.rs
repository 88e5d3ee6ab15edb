//! Guards and helpers for tests through a real kernel.
