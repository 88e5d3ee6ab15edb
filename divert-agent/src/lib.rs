//! The node agent of Divert.
//!
//! Data flows one way: manifests → world → compile → plan → apply (the rules between are `divert_core`'s), and for bytes:
//! accept → detect → decide → forward.

pub mod admin;
pub mod apply;
pub mod cli;
pub mod control;
pub mod explain;
pub mod insert;
pub mod inspect;
pub mod kernel;
pub mod manifests;
pub mod metrics;
pub mod node_lock;
pub mod okteto;
pub mod plan_command;
pub mod run;
pub mod splice;
pub mod table;
pub mod watchdog;
