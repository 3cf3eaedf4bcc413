//! Waits for the eventfd that unmasks INTx, where the kernel does not.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// A thread that unmasks whenever its eventfd is signalled. Ended when dropped.
pub(crate) struct Resampler {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Resampler {
    pub(crate) fn start(resample: OwnedFd, unmask: impl Fn() + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let wake = Arc::clone(&stop);
        let wait = move || {
            loop {
                let mut fds = [PollFd::new(&resample, PollFlags::IN), PollFd::new(&*wake, PollFlags::IN)];
                let ready = poll(&mut fds, None);
                let is_ready = |fd: &PollFd<'_>| ready.is_ok() && !fd.revents().is_empty();
                // What was signalled before the end counts. The eventfd may be emptied by somebody else too.
                if is_ready(&fds[0]) && rustix::io::read(&resample, &mut [0; 8]).is_ok() {
                    unmask();
                }
                if is_ready(&fds[1]) {
                    return;
                }
            }
        };
        Ok(Self { stop, thread: Some(std::thread::Builder::new().name("intx-unmask".into()).spawn(wait)?) })
    }
}

impl Drop for Resampler {
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            thread.join().unwrap_or_else(|_| tracing::error!("The thread that unmasks INTx panicked"));
        }
    }
}
