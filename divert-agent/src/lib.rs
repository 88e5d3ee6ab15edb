//! The node agent of Divert.
//!
//! Data flows one way: manifests → world → compile → plan → apply, and for bytes:
//! accept → detect → decide → forward.

pub mod api;
pub mod compile;
pub mod control;
pub mod decide;
pub mod manifests;
pub mod plan;
pub mod plan_view;
pub mod splice;
pub mod table;
pub mod world;
