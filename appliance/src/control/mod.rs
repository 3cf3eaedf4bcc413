//! Guests that run on this host: where their control sockets are, and talking to them.
//!
//! ```text
//!   /run/throughway/            of root; others have $XDG_RUNTIME_DIR/throughway
//!     NAME/                     mode 0700
//!       lock                    locked while the guest's process lives
//!       control.sock            mode 0600; made once the guest runs
//!     .daemon/                  what is noted of guests beside that
//! ```

mod client;
mod counted;
mod end;
mod launch;
mod log;
mod notes;
mod place;
mod scope;

pub use client::{Answer, Client, ClientError};
pub use counted::count_host;
pub use end::End;
pub use launch::{Launch, LaunchError, Launched, usual_logs};
pub use log::{LogFiles, RotatingLog};
pub use notes::{Ending, Notes, Start, name_of};
pub use place::{Place, RunDir, Served};
pub use scope::Limits;
