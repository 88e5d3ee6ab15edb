//! The node agent of Divert.
//!
//! Data flows one way: manifests → world → compile → plan → apply, and for bytes:
//! accept → detect → decide → forward.

pub mod apply;
pub mod decide;
pub mod kernel;
pub mod plan;
pub mod splice;
pub mod table;
