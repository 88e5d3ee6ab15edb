pub mod decider;
pub mod end;
pub mod town;
