//! What the eBPF programs, the agent and the tests agree on: the layout of BPF maps and the meaning
//! of label addresses. No code here does I/O, but for [`netns`] (feature `std`).
#![cfg_attr(not(feature = "std"), no_std)]

pub mod insert;
pub mod label;
pub mod map;
#[cfg(feature = "std")]
pub mod netns;
pub mod refusal;
