//! Which of the two data paths agents of the tests take: the kit runs on both, chosen by the variable that chooses for an
//! agent.

/// The value of `--path`, unless a test says another.
pub fn chosen() -> String {
    std::env::var(VARIABLE).unwrap_or_else(|_| "splice".into())
}

/// Whether they insert: a connection is its server's own until a request on it is diverted.
pub fn inserts() -> bool {
    chosen() == "insert"
}

/// The variable.
pub const VARIABLE: &str = "DIVERT_PATH";
