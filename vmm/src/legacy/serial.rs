//! COM1: a 16550A whose far ends are descriptors.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::COM1_IRQ;
use crate::Action;
use crate::bus::BusDevice;
use crate::control::Recent;
use crate::vm::{self, Vm};

/// Signals an eventfd that KVM turns into an interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the machine's loop when the guest has emptied the receive buffer.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

/// Bytes that a slow reader's writer may leave behind when vCPUs are to be stopped.
const MOST_HELD: usize = 1024;
/// A log that is further behind is written by the vCPU that says the next byte.
const FAR_BEHIND: u64 = 16 << 10;
/// Written to a log at once.
const LOG_PIECE: usize = 4096;

/// Where the guest's bytes go: to what is kept of late, from there to the log, and to a reader. Each goes to the reader at
/// once, and the vCPU that writes it waits for one that is slow; where nobody takes it any more (EPIPE, EIO of a closed pty)
/// the guest goes on unheard.
struct Output {
    recent: Arc<Recent>,
    log: Option<Mutex<Log>>,
    /// As far as the log has got.
    logged: AtomicU64,
    to: Option<Mutex<Reader>>,
    /// Readable while nobody may wait for a reader, because vCPUs are to be stopped.
    hurry: EventFd,
}

struct Log {
    to: Box<dyn Write + Send>,
    fails: bool,
}

struct Reader {
    file: File,
    /// Said while nobody could wait; goes out before what is said next.
    held: VecDeque<u8>,
}

impl Output {
    fn put(&self, byte: u8) {
        let end = self.recent.push(byte);
        if self.log.is_some() && end.saturating_sub(self.logged.load(Ordering::Acquire)) > FAR_BEHIND {
            self.write_log();
        }
        if let Some(to) = &self.to {
            self.put_to(&mut to.lock().unwrap_or_else(PoisonError::into_inner), byte);
        }
    }

    fn put_to(&self, to: &mut Reader, byte: u8) {
        if to.held.len() < MOST_HELD {
            to.held.push_back(byte);
        }
        while let Some(byte) = to.held.front().copied() {
            if !self.write(&to.file, byte) {
                return;
            }
            to.held.pop_front();
        }
    }

    /// False where it was not to be waited for.
    fn write(&self, mut to: &File, byte: u8) -> bool {
        loop {
            let written =
                self.wait(to).and_then(|may| if may { to.write(&[byte]).map(Some) } else { Ok(None) });
            match written {
                Ok(count) => return count.is_some(),
                Err(error) if retryable(&error) => {}
                Err(error) => {
                    tracing::debug!("Writing to the console: {error}");
                    return true;
                }
            }
        }
    }

    /// Waits until something can be written; false when it is not to be waited for.
    fn wait(&self, to: &File) -> io::Result<bool> {
        // SAFETY: the descriptor belongs to `self.hurry`, which lives as long as the borrow.
        let hurry = unsafe { BorrowedFd::borrow_raw(self.hurry.as_raw_fd()) };
        let mut fds = [PollFd::new(to, PollFlags::OUT), PollFd::from_borrowed_fd(hurry, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [to, hurry] = fds;
        Ok(!to.revents().is_empty() || hurry.revents().is_empty())
    }

    /// Brings the log to where the guest is.
    fn write_log(&self) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let place = self.logged.load(Ordering::Acquire);
            let (from, piece) = self.recent.read(place, LOG_PIECE);
            if piece.is_empty() {
                return;
            }
            let result = log.to.write_all(&piece).and_then(|()| log.to.flush());
            if let (Err(error), false) = (&result, log.fails) {
                tracing::error!(
                    "Writing the console's log: {error}; what the guest says is lost until that works"
                );
            }
            log.fails = result.is_err();
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            self.logged.store(from.saturating_add(count), Ordering::Release);
        }
    }
}

fn retryable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

type Uart = Serial<Interrupt, Drained, Vec<u8>>;

/// The port. Its interrupt goes through an irqfd.
///
/// What the guest sends passes through a buffer in `uart`, so that nobody holds its lock while he waits for `output`.
pub struct SerialPort {
    uart: Mutex<Uart>,
    output: Output,
    drained: EventFd,
}

impl SerialPort {
    /// A port that writes to `output` and `log`, keeps what it wrote of late in `recent`, and interrupts by [`COM1_IRQ`].
    pub fn new(
        vm: &Vm,
        output: Option<OwnedFd>,
        log: Option<Box<dyn Write + Send>>,
        recent: &Arc<Recent>,
    ) -> Result<Arc<Self>, vm::Error> {
        let made = |flags| EventFd::new(flags | EFD_CLOEXEC);
        let failed = |source| vm::Error::Call { doing: "Making the console's eventfds".into(), source };
        let interrupt = made(0).map_err(failed)?;
        let drained = made(EFD_NONBLOCK).map_err(failed)?;
        vm.attach_irqfd(&interrupt, COM1_IRQ)?;
        let events = Drained(drained.try_clone().map_err(failed)?);
        let uart = Serial::with_events(Interrupt(interrupt), events, Vec::with_capacity(1));
        let hurry = made(EFD_NONBLOCK).map_err(failed)?;
        let output = Output {
            recent: Arc::clone(recent),
            log: log.map(|to| Mutex::new(Log { to, fails: false })),
            logged: AtomicU64::new(0),
            to: output.map(|file| Mutex::new(Reader { file: File::from(file), held: VecDeque::new() })),
            hurry,
        };
        Ok(Arc::new(Self { uart: Mutex::new(uart), output, drained }))
    }

    /// From now on no vCPU waits for a slow reader: what he does not take is held until later. For when vCPUs are to be
    /// stopped.
    pub fn hurry(&self) {
        if let Err(error) = self.output.hurry.write(1) {
            tracing::error!("Stopping to wait for the console's reader: {error}");
        }
    }

    /// Ends [`hurry`](Self::hurry).
    pub fn take_time(&self) {
        let _ = self.output.hurry.read();
    }

    /// Brings the log to where the guest is.
    pub fn write_log(&self) {
        self.output.write_log();
    }

    /// Back to power-on, and [`hurry`](Self::hurry) is over. What the guest had not read yet is lost.
    pub fn reset(&self) -> io::Result<()> {
        self.take_time();
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let interrupt = Interrupt(uart.interrupt_evt().0.try_clone()?);
        let events = Drained(uart.events().0.try_clone()?);
        // Only a state with too much input is refused, and this one has none.
        if let Ok(fresh) = Uart::from_state(&SerialState::default(), interrupt, events, Vec::with_capacity(1))
        {
            *uart = fresh;
        }
        self.drained.write(1)
    }

    /// How many bytes the receive buffer takes now.
    pub fn room(&self) -> usize {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner).fifo_capacity()
    }

    /// Puts bytes in front of the guest; returns how many it took.
    pub fn receive(&self, data: &[u8]) -> usize {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        match uart.enqueue_raw_bytes(data) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!("Input for the console was dropped: {error:?}");
                data.len()
            }
        }
    }

    /// Readable when the guest has emptied the receive buffer.
    pub fn drained(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.drained`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.drained.as_raw_fd()) }
    }

    /// Makes [`drained`](Self::drained) unreadable until the next time.
    pub fn clear_drained(&self) {
        let _ = self.drained.read();
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at).map_or(0xff, |at| if at < 8 { uart.read(at) } else { 0xff });
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        // A string instruction repeats at one port, and so does each element that arrives here: one byte a write.
        if let (Ok(at @ 0..8), [byte]) = (u8::try_from(offset), data) {
            let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = uart.write(at, *byte) {
                tracing::debug!("Writing COM1 register {at}: {error:?}");
            }
            let sent = uart.writer_mut().pop();
            drop(uart);
            if let Some(byte) = sent {
                self.output.put(byte);
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const THR: u64 = 0;
    const LCR: u64 = 3;
    const SCRATCH: u64 = 7;

    fn port() -> Option<(Arc<SerialPort>, OwnedFd)> {
        let vm = match Vm::new() {
            Ok(vm) => vm,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        vm.create_interrupt_controllers().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let recent = Arc::new(Recent::new().unwrap());
        Some((SerialPort::new(&vm, Some(writer), None, &recent).unwrap(), reader))
    }

    #[test]
    fn what_nobody_could_wait_for_goes_out_before_what_comes_next() {
        let Ok(vm) = Vm::new() else { return eprintln!("skipped: no KVM here") };
        vm.create_interrupt_controllers().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut filled = 0;
        while let Ok(count) = rustix::io::write(&writer, &[b'x'; 4096]) {
            filled += count;
        }
        let recent = Arc::new(Recent::new().unwrap());
        let port = SerialPort::new(&vm, Some(writer), None, &recent).unwrap();
        port.hurry();
        let _ = port.write(THR, b"a");
        let _ = port.write(THR, b"b");
        port.take_time();
        let mut taken = vec![0; filled];
        assert_eq!(rustix::io::read(&reader, &mut taken[..]).unwrap(), filled);
        let _ = port.write(THR, b"c");
        assert_eq!(rustix::io::read(&reader, &mut taken[..]).unwrap(), 3);
        assert_eq!(taken.get(..3), Some(&b"abc"[..]));
    }

    #[test]
    fn a_log_gets_all_however_seldom_it_is_looked_after() {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);

        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let Ok(vm) = Vm::new() else { return eprintln!("skipped: no KVM here") };
        vm.create_interrupt_controllers().unwrap();
        let (kept, recent) = (Kept::default(), Arc::new(Recent::new().unwrap()));
        recent.has_log(true);
        let port = SerialPort::new(&vm, None, Some(Box::new(kept.clone())), &recent).unwrap();
        let said: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for byte in &said {
            let _ = port.write(THR, &[*byte]);
        }
        assert!(recent.more().is_raised());
        port.write_log();
        assert!(*kept.0.lock().unwrap() == said);
    }

    #[test]
    fn a_reader_who_takes_nothing_stops_the_writer_until_there_is_hurry() {
        let Some((port, _reader)) = port() else { return };
        let writer = std::thread::spawn({
            let port = Arc::clone(&port);
            // Twice what a pipe holds.
            move || (0..1 << 17).for_each(|_| drop(port.write(THR, b"x")))
        });
        std::thread::sleep(Duration::from_millis(300));
        let waited = !writer.is_finished();
        assert!(port.room() > 0, "nobody else waits with it");
        port.hurry();
        writer.join().unwrap();
        assert!(waited);
    }

    #[test]
    fn a_reset_forgets_registers_and_input_and_writes_go_out_again() {
        let Some((port, reader)) = port() else { return };
        let _ = port.write(LCR, &[0x80]);
        let _ = port.write(SCRATCH, &[0x55]);
        port.receive(b"typed");
        port.hurry();
        port.reset().unwrap();
        let mut scratch = [0];
        port.read(SCRATCH, &mut scratch);
        assert_eq!((scratch, port.room()), ([0], 64));
        let _ = port.write(THR, b"!");
        let mut out = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut out).unwrap(), 1);
        assert_eq!(out[0], b'!');
    }
}
