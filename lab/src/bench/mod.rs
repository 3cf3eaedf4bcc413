//! `cargo lab bench`: side by side with other VMMs, in rounds that take turns, so that a machine's load meets all alike.
//!
//! What is printed is what docs/benchmarks.md has. Nothing here is a test: no figure makes anything fail.

mod boxed;
mod devices;
pub mod figures;
mod guest;
pub mod machine;
pub mod memory;
mod peers;
pub mod start;
pub mod uefi;
pub mod vf;
