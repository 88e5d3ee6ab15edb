//! Which of the two data paths agents of the tests take: the kit runs on both, chosen by the variable that chooses for an
//! agent.

/// Whether they insert: a connection is its server's own until a request on it is diverted.
pub fn inserts() -> bool {
    std::env::var("DIVERT_PATH").is_ok_and(|path| path == "insert")
}
