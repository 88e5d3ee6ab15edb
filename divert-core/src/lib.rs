//! The rules of Divert: who goes where, and the objects that this is about. Computations without effects, for
//! whoever needs them: the agent and the controller, and a client on any system.
//!
//! Data flows one way: [`manifests`] or a cluster → [`world`] → [`compile`] → [`plan`]; by it, [`decide`] and
//! [`choose`] say where each request goes. Files, sockets, clocks and threads are other crates' business:
//! `cargo xtask test` checks this one for systems that have neither Linux's nor Unix's.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests read what is deployed, and measure"
    )
)]

pub mod admin;
pub mod api;
pub mod choose;
pub mod columns;
pub mod compile;
pub mod crd;
pub mod decide;
pub mod explain;
pub mod hash;
pub mod manifests;
pub mod okteto;
pub mod plan;
pub mod plan_view;
pub mod world;
