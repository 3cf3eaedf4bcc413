//! The emulated box: a machine with an IOMMU, interrupt remapping and SR-IOV
//! NICs, made by QEMU in software, for people and tests that have no such
//! hardware.
//!
//! Three levels, by their usual names: L0 is QEMU, L1 is the Linux host in it
//! where `throughway` runs, L2 is the guest that `throughway` starts. Everything
//! above L0 is real: vfio-pci, IOMMU page tables, KVM, the guest's igbvf driver.
//!
//! The way of the data: [`sources`] and [`apt`] fetch Debian packages into the
//! [`cache`], [`sysroot`] unpacks them, [`image`] packs initramfs images out of
//! them, [`machine`] boots QEMU on those, and [`session`] runs scenario files in
//! it and reads back their results.
#![forbid(unsafe_code)]

pub mod admin;
pub mod apt;
pub mod bench;
pub mod cache;
pub mod command;
pub mod cpio;
pub mod demo;
pub mod fresh;
pub mod fuzz;
pub mod host;
pub mod image;
pub mod installed;
pub mod kernel;
pub mod kernel_build;
pub mod machine;
pub mod modules;
pub mod package;
pub mod progress;
pub mod qemu;
pub mod relay;
pub mod scenario;
pub mod session;
pub mod sources;
pub mod sysroot;
pub mod tap;
pub mod tool;
pub mod verify;
