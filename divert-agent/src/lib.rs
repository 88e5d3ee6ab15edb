//! The node agent of Divert.
//!
//! Data flows one way: manifests → world → compile → plan → apply, and for bytes:
//! accept → detect → decide → forward.

pub mod admin;
pub mod api;
pub mod apply;
mod choose;
pub mod cli;
mod columns;
pub mod compile;
pub mod control;
pub mod controller;
pub mod crd;
pub mod decide;
pub mod explain;
mod hash;
pub mod insert;
pub mod inspect;
pub mod kernel;
pub mod kubernetes;
pub mod manifests;
pub mod metrics;
pub mod node_lock;
pub mod okteto;
pub mod plan;
pub mod plan_view;
pub mod run;
pub mod splice;
pub mod table;
pub mod watchdog;
pub mod world;
