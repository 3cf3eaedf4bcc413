//! What the appliance does for whoever is at the other end of a connection.

mod actor;
mod problem;
mod request;

use std::fs::File;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

pub use actor::{Actor, Right, Role};
pub use problem::Problem;
pub use request::{Answer, Request, Verb};

use crate::wire::Event;

/// A guest's console: what is read is what the guest said (what was kept of it first, then as it comes), what is written is
/// typed into it. It ends with the guest or with the connection.
pub trait Console: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Console for T {}

/// The appliance.
///
/// Who asks is said with each request, for the audit log and to be checked: an implementation refuses what
/// [`Request::right`] asks for and [`Actor::may`] denies, whoever has checked it before.
pub trait Control: Send + Sync + 'static {
    /// Answers a request, or does what it asks for.
    ///
    /// # Errors
    /// It may not be done, it cannot, or the host says no: in words for a person, and with a status as in RFC 9457.
    fn ask(&self, by: &Actor, request: Request) -> BoxFuture<'_, Result<Answer, Problem>>;

    /// What happens from now on. Whoever reads too slowly misses some and is told how many.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Attaches to a guest's console; with `writes`, its keyboard as well, which only one has at a time.
    ///
    /// # Errors
    /// There is no such guest, it does not run, or somebody else has its keyboard.
    fn console(
        &self,
        by: &Actor,
        guest: &str,
        writes: bool,
    ) -> BoxFuture<'_, Result<Box<dyn Console>, Problem>>;

    /// Begins to bring an image of so many bytes in; `finish_upload` or `give_up_upload` ends that.
    ///
    /// # Errors
    /// He may not, there is one of this name, or there is no room.
    fn upload(&self, by: &Actor, name: &str, length: u64) -> BoxFuture<'_, Result<Upload, Problem>>;

    /// Whether it can be asked anything.
    fn is_there(&self) -> bool;
}

/// An image that is being brought in.
#[derive(Debug)]
pub struct Upload {
    /// Its number.
    pub id: u64,
    /// Where its bytes go.
    pub file: File,
}

/// As everybody holds it.
pub type Shared = Arc<dyn Control>;
