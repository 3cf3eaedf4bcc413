//! Notices that a server ends while nothing is asked of it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// A thread that waits for the other end of a socket to be closed. Ended when dropped.
pub(super) struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(stream: UnixStream, ended: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let wake = Arc::clone(&stop);
        let wait = move || {
            loop {
                let mut fds = [PollFd::new(&stream, PollFlags::RDHUP), PollFd::new(&*wake, PollFlags::IN)];
                // Interrupted: once more.
                let Ok(_) = poll(&mut fds, None) else { continue };
                if !fds[1].revents().is_empty() {
                    return;
                }
                if !fds[0].revents().is_empty() {
                    return ended();
                }
            }
        };
        Ok(Self { stop, thread: Some(std::thread::Builder::new().name("vfio-user".into()).spawn(wait)?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            thread.join().unwrap_or_else(|_| tracing::error!("The thread that watches a socket panicked"));
        }
    }
}
