//! What a guest, or a file, feeds to a parser or a device: everything, for as long as one likes (docs/fuzzing.md).
//!
//! Each test is one target. By itself it runs a second from a fixed seed, which is part of the suite `unit`;
//! `cargo lab fuzz TARGET --minutes 10` runs it longer and from a new one. What is found there becomes a regression test
//! beside the code.

mod chipset;
mod driver;
mod firmware;
mod pci;
mod qcow2;
mod random;
mod ring;
mod session;
mod virtio;
