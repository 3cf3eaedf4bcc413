//! Where the process is locked up that reads what strangers send.
//!
//! [`web`] has the walls (Landlock, no capabilities, no new ones) and the list of system calls of `throughway web`, made of
//! [`rules`]; a call that is on no list ends the process by its [`trap`].

mod rules;
pub mod trap;
pub mod web;
