//! Guards and helpers for tests through a real kernel.
//!
//! A [`Lab`](lab::Lab) is a small network of namespaces that stand for pods, with a cgroup of its own
//! and no way out. Tests put servers into pods, start the [`Agent`](agent::Agent), and drive plain
//! sockets that belong to a pod ([`broker`] says how). Everything is a guard: dropped, it is gone, also
//! when the test panics; what a killed test process leaves is swept by the next one ([`run`]).
//!
//! [`kube`] has a real Kubernetes API that labs can be joined to as nodes; [`cluster`] has a whole Kubernetes with real
//! nodes and real pods.
//!
//! No test sleeps to wait for something: [`wait::until`] polls with a deadline.

pub mod agent;
pub mod bpf_maps;
pub mod bpf_stats;
pub mod brief;
pub mod broker;
pub mod cgroup;
pub mod chain;
pub mod chart;
pub mod cluster;
pub mod fixture;
pub mod foreign;
pub mod freeze;
pub mod grpc;
pub mod h2;
pub mod hostile;
pub mod http;
pub mod insert;
pub mod kube;
pub mod lab;
pub mod manifest;
pub mod memory;
pub mod named_netns;
pub mod path;
pub mod peer;
pub mod process;
pub mod prometheus;
pub mod run;
pub mod script;
pub mod server;
pub mod sidecar;
pub mod sniff;
pub mod stage;
pub mod steady;
pub mod traces;
pub mod usage;
pub mod wait;
