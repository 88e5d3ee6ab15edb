pub mod end;
pub mod town;
