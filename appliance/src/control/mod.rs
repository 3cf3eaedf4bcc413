//! Guests that run on this host: where their control sockets are, and talking to them.
//!
//! ```text
//!   /run/throughway/            of root; others have $XDG_RUNTIME_DIR/throughway
//!     NAME/                     mode 0700
//!       lock                    locked while the guest's process lives
//!       control.sock            mode 0600; made once the guest runs
//! ```

mod client;
mod log;
mod place;

pub use client::{Answer, Client, ClientError};
pub use log::RotatingLog;
pub use place::{Place, RunDir, Served};
