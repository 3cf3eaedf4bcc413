//! Functions that another process serves over a Unix socket, by the vfio-user protocol.
//!
//! The protocol is QEMU's `docs/interop/vfio-user.rst`. The server is trusted as a device is: with the guest's memory, which
//! it maps, and not with this process. What it says is checked, and one that hangs up, stalls or breaks the protocol is a
//! function that is gone.
//!
//! `vfio_user`'s client is not used: it takes no reply for a refusal, waits without an end, and panics at some of what a server
//! may answer. Its server is what the tests here run against.

mod connection;
mod function;
mod regions;
mod space;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

pub use function::UserFunction;
