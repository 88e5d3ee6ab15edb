//! `divert-agent`, the program.

fn main() {}
