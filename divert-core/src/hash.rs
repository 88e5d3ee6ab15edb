//! Hash tables of what a large cluster has a hundred thousand of, captured destinations, and of what each request looks
//! up.
//!
//! The standard library's hasher resists whoever chooses keys to collide, at a price that showed. Here keys are addresses
//! that the cluster gives out, or names of what is in it, and foldhash's seed, another in each process, is protection enough.

/// A hash table by [`foldhash`].
pub type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
