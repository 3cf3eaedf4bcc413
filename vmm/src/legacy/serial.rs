//! COM1: a 16550A whose far ends are descriptors.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::COM1_IRQ;
use crate::Action;
use crate::bus::BusDevice;
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

/// Writes through at once; where nobody takes it any more (EPIPE, EIO of a closed pty) the guest goes on unheard.
struct Output(File);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let error = match self.0.write_all(data) {
            Ok(()) => return Ok(data.len()),
            Err(error) => error,
        };
        tracing::debug!("Writing to the console: {error}");
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port. Its interrupt goes through an irqfd.
pub struct SerialPort {
    uart: Mutex<Serial<Interrupt, Drained, Output>>,
    drained: EventFd,
}

impl SerialPort {
    /// A port that writes to `output` and interrupts by [`COM1_IRQ`].
    pub fn new(vm: &Vm, output: OwnedFd) -> Result<Arc<Self>, vm::Error> {
        let made = |flags| EventFd::new(flags | EFD_CLOEXEC);
        let failed = |source| vm::Error::Call { doing: "Making the console's eventfds".into(), source };
        let interrupt = made(0).map_err(failed)?;
        let drained = made(EFD_NONBLOCK).map_err(failed)?;
        vm.attach_irqfd(&interrupt, COM1_IRQ)?;
        let events = Drained(drained.try_clone().map_err(failed)?);
        let uart = Serial::with_events(Interrupt(interrupt), events, Output(File::from(output)));
        Ok(Arc::new(Self { uart: Mutex::new(uart), drained }))
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
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        // A string instruction repeats at one port, and so does each element that arrives here: one byte a write.
        if let (Ok(at @ 0..8), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = uart.write(at, *byte)
        {
            tracing::debug!("Writing COM1 register {at}: {error:?}");
        }
        Action::None
    }
}
