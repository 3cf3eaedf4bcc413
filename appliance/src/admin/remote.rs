//! `throughway web`: the process that serves the admin interface. All that it has is what the daemon hands it over its standard
//! input, a socket.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;
use web::access::{Access, Settings};
use web::server::{Certificate, Limits, Listener, Serving};
use web::wire::Event;
use web::{Actor, Answer, Console, Control, Problem, Request, Right, Shared, Upload};

use super::link::{Asking, Given, Hello, Kind, Reader, Telling, Waiting, What, Writer, both};

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(180);
/// Requests that may wait to be written.
const WAITING: usize = 64;

type Heard = (Result<Given, Problem>, Vec<OwnedFd>);

/// The daemon, from the other side of the socket.
struct Remote {
    to: mpsc::Sender<Asking>,
    waiting: Arc<Mutex<Waiting<Heard>>>,
    events: broadcast::Sender<Event>,
    next: AtomicU64,
}

/// Serves until the daemon is gone.
///
/// # Errors
/// Standard input is no socket of a daemon, or what it hands over cannot be used.
pub(crate) fn web() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("Giving all rights up")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("Making a runtime")?;
    runtime.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("Taking the daemon's socket")?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let (mut reader, writer) = both(UnixStream::from_std(socket)?, false);
    let first = reader.next::<Telling>().await.context("Listening to the daemon")?;
    let Some((Telling::Hello(hello), descriptors)) = first else {
        anyhow::bail!("This is started by `throughway daemon`, and by nobody else");
    };
    let (to, asked) = mpsc::channel(WAITING);
    let waiting = Arc::new(Mutex::default());
    let events = broadcast::Sender::new(super::EVENTS);
    let remote =
        Remote { to, waiting: Arc::clone(&waiting), events: events.clone(), next: AtomicU64::new(1) };
    let control: Shared = Arc::new(remote);
    let (hosts, users_file) = (hello.hosts.clone(), hello.users_file.clone());
    let (serving, _folder) = serving(hello, descriptors)?;
    // What it notes in the audit log goes by the daemon, which is heard below alone: nothing of that is waited for here.
    let announce = Box::new(|code: &str| {
        tracing::warn!("Nobody has claimed this box. Its code, good for an hour: {code}");
    });
    let settings = Settings { folder: serving.state.clone(), users_file, hosts, announce };
    let access = Access::open(settings, Shared::clone(&control)).context("Reading who may log in")?;
    tokio::select! {
        heard = hear(reader, &waiting, &events) => heard.context("Listening to the daemon"),
        written = write(writer, asked) => written.context("Asking the daemon"),
        served = web::server::serve(serving, web::app(control, &access)) => {
            served.context("Serving the admin interface")?;
            // Nothing listens: all that is left is to be there until another file says so.
            std::future::pending().await
        }
    }
}

/// What was handed over, ready to be served; and the folder, which is reached by its descriptor alone.
fn serving(hello: Hello, mut descriptors: Vec<OwnedFd>) -> anyhow::Result<(Serving, OwnedFd)> {
    let folder = descriptors.pop().context("The daemon hands no folder over")?;
    let mut listeners = Vec::new();
    for (kind, descriptor) in hello.listeners.into_iter().zip(descriptors) {
        listeners.push(match kind {
            Kind::Https | Kind::Http => {
                let listener = std::net::TcpListener::from(descriptor);
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                if kind == Kind::Https { Listener::Https(listener) } else { Listener::Http(listener) }
            }
            Kind::Local => {
                let listener = std::os::unix::net::UnixListener::from(descriptor);
                listener.set_nonblocking(true)?;
                Listener::Local(UnixListener::from_std(listener)?)
            }
        });
    }
    let certificate =
        hello.certificate.and_then(|(chain, key)| match Certificate::own(chain.as_bytes(), key.as_bytes()) {
            Ok(own) => Some(own),
            Err(error) => {
                tracing::error!("{error}; one of the box's own is used");
                None
            }
        });
    let state = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let limits = Limits::default();
    Ok((Serving { listeners, certificate, state, names: hello.names, limits }, folder))
}

/// Gives each answer to who waits for it, until the daemon is gone.
async fn hear(
    mut reader: Reader,
    waiting: &Mutex<Waiting<Heard>>,
    events: &broadcast::Sender<Event>,
) -> io::Result<()> {
    while let Some((told, descriptors)) = reader.next::<Telling>().await? {
        match told {
            Telling::Hello(_) => {}
            Telling::Answer { id, answer } => {
                let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(waits) = waits {
                    // Who asked may be gone.
                    let _ = waits.send((answer, descriptors));
                }
            }
            Telling::Event(event) => {
                let _ = events.send(event);
            }
        }
    }
    Ok(())
}

async fn write(mut writer: Writer, mut asked: mpsc::Receiver<Asking>) -> io::Result<()> {
    while let Some(asking) = asked.recv().await {
        writer.write(&asking, &[]).await?;
    }
    Ok(())
}

/// Forgets what is waited for by somebody who has gone.
struct Forget<'a>(&'a Mutex<Waiting<Heard>>, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Remote {
    async fn exchange(&self, by: &Actor, what: What) -> Result<(Given, Vec<OwnedFd>), Problem> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, answer);
        let _forget = Forget(&self.waiting, id);
        let gone = || Problem::unavailable("The daemon does not answer; try again in a moment");
        let asking = Asking { id, by: by.clone(), what };
        self.to.send(asking).await.map_err(|_| gone())?;
        let (given, descriptors) =
            timeout(PATIENCE, answered).await.map_err(|_| gone())?.map_err(|_| gone())?;
        Ok((given?, descriptors))
    }
}

/// Refuses what somebody may not.
pub(super) fn permit(by: &Actor, right: Right) -> Result<(), Problem> {
    if by.may(right) {
        return Ok(());
    }
    Err(Problem::forbidden(match right {
        Right::View => "This login may not look",
        Right::Operate => "This login may only look: it takes an operator to do this",
        Right::Administer => "This takes an administrator",
        Right::AssignDevices => "This takes the right to give devices of the host to guests",
    }))
}

impl Control for Remote {
    fn ask(
        &self,
        by: &Actor,
        request: Request,
    ) -> futures_util::future::BoxFuture<'_, Result<Answer, Problem>> {
        let by = by.clone();
        Box::pin(async move {
            // The daemon does it again, and writes down what it refuses.
            match self.exchange(&by, What::Request(request)).await? {
                (Given::Answer(answer), _) => Ok(answer),
                _ => Err(Problem::fault("The daemon gave an answer to something else; see its log")),
            }
        })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn console(
        &self,
        by: &Actor,
        guest: &str,
        writes: bool,
    ) -> futures_util::future::BoxFuture<'_, Result<Box<dyn Console>, Problem>> {
        let (by, guest) = (by.clone(), guest.to_owned());
        Box::pin(async move {
            let (given, mut descriptors) = self.exchange(&by, What::Console { guest, writes }).await?;
            let (Given::Console { first }, Some(socket)) = (given, descriptors.pop()) else {
                return Err(Problem::fault("The daemon gave no console; see its log"));
            };
            let failed = |error: io::Error| Problem::fault(format!("Taking the console: {error}"));
            let socket = std::os::unix::net::UnixStream::from(socket);
            socket.set_nonblocking(true).map_err(failed)?;
            let socket = UnixStream::from_std(socket).map_err(failed)?;
            Ok(Box::new(Attached { first, at: 0, socket }) as Box<dyn Console>)
        })
    }

    fn upload(
        &self,
        by: &Actor,
        name: &str,
        length: u64,
    ) -> futures_util::future::BoxFuture<'_, Result<Upload, Problem>> {
        let (by, name) = (by.clone(), name.to_owned());
        Box::pin(async move {
            let (given, mut descriptors) = self.exchange(&by, What::Upload { name, length }).await?;
            match (given, descriptors.pop()) {
                (Given::Upload { upload }, Some(file)) => Ok(Upload { id: upload, file: file.into() }),
                _ => Err(Problem::fault("The daemon gave no file; see its log")),
            }
        })
    }

    fn is_there(&self) -> bool {
        !self.to.is_closed()
    }
}

/// A guest's console: what came before its socket was handed over, then the socket.
struct Attached {
    first: Vec<u8>,
    at: usize,
    socket: UnixStream,
}

impl AsyncRead for Attached {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(left @ [_, ..]) = self.first.get(self.at..) {
            let count = left.len().min(into.remaining());
            into.put_slice(left.get(..count).unwrap_or_default());
            self.at = self.at.saturating_add(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(task, into)
    }
}

impl AsyncWrite for Attached {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(task)
    }
}
