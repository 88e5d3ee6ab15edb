//! What agents answer on their admin address, for those who give the answers and those who ask.

pub mod agent;
pub mod programmed;
