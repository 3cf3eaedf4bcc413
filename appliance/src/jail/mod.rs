//! Where a guest's machine is locked up: a process of its own, which can reach nothing but the descriptors it was handed.
//!
//! ```text
//!   keeper (the rights of `run`)                      machine (none)
//!   ---------------------------                       --------------
//!   reads the file, claims and binds devices,         KVM, guest memory, vCPUs, devices
//!   makes links, opens all of it        -- wire -->   takes what it is handed
//!   hot-adds, rotates the console's log <-- wire --   asks by names of the guest's file
//!   puts everything back                              ends with the keeper
//! ```
//!
//! [`split`](split::split) makes two processes of one before either has threads. The machine's enters the [`walls`] (user,
//! namespaces, an empty root, no capabilities, no new ones, Landlock) and each of its threads a [`filter`] of system calls before
//! the guest's first instruction. A call that is on no list ends the process by its [`trap`].
//!
//! The process that reads what strangers send over the network is locked up as well, by [`web`].

pub mod filter;
mod rules;
pub mod split;
pub mod trap;
mod tree;
pub mod user;
pub mod walls;
pub mod web;
pub mod wire;

pub use split::{Everywhere, Machine, Split, split};
pub use user::User;
pub use walls::Lacks;
pub use wire::{Files, Place, Wire};
