//! The control socket: what may be asked of a running machine, and answered, over a Unix socket.
//!
//! ```text
//!   client                                   server (the thread that runs the machine)
//!     | <------------ {"hello": ...} ---------- |
//!     | ---- "state" or {"link": {...}} ------> |   one request at a time, a line each
//!     | <- {"state": ...}, "done", {"error"} -- |
//!     | ---- {"console": ...} ----------------> |   from the answer on: bytes of COM1, both ways
//!     | <------------ {"ended": ...} ---------- |   at the machine's end, where no console is attached
//! ```
//!
//! Lines are JSON ([`Request`], [`Message`]) of at most [`LONGEST_LINE`] bytes. The other side must be root or of the user
//! that runs the machine. It may be slow or hostile all the same: descriptors never block, connections are few, what waits
//! for a slow one is bounded, and one that says nothing is sent away.
//!
//! Rooms: `protocol` (the messages), `server`, `connection` (one client), `recent` (the console's last bytes).

mod connection;
mod protocol;
mod recent;
mod server;

pub use protocol::{
    Attach, Device, Ended, Greeting, LONGEST_LINE, Message, Refusal, RefusalKind, Request, RunState,
    Statistics, Status, VERSION, VcpuStatistics, parse,
};
pub use recent::Recent;
pub(crate) use server::{Client, Server};
