//! COM1: a 16550A whose far ends are descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{COM1_IRQ, ConsoleOutput};
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

/// Offset of the interrupt identification register (16550, IIR).
const IIR: u8 = 2;
/// In IIR: nothing is pending.
const NONE_PENDING: u8 = 1 << 0;
/// In IIR: received data is there.
const DATA_PENDING: u8 = 1 << 2;
/// Offset of the interrupt enable register (IER), whose first bit is for received data.
const IER: u8 = 1;
/// Offset of the line control register (LCR), whose last bit puts the divisor where IER is.
const LCR: u8 = 3;
/// Offset of the line status register (LSR), whose first bit says that data is ready.
const LSR: u8 = 5;

/// A register as the guest reads it.
///
/// Received data is pending for as long as there is some. The model forgets that with the first byte that is read, and a
/// driver that reads only so many bytes at a time (Linux: 256) then leaves the rest, and all that comes after, for ever.
fn read(uart: &mut Uart, register: u8) -> u8 {
    let value = uart.read(register);
    if register != IIR || value & NONE_PENDING == 0 {
        return value;
    }
    let announced = uart.read(LCR) & (1 << 7) == 0 && uart.read(IER) & 1 != 0;
    if announced && uart.read(LSR) & 1 != 0 { value & !NONE_PENDING | DATA_PENDING } else { value }
}

type Uart = Serial<Interrupt, Drained, Vec<u8>>;

/// The port. Its interrupt goes through an irqfd.
///
/// What the guest sends passes through a buffer in `uart`, so that nobody holds its lock while he waits for `output`.
pub struct SerialPort {
    uart: Mutex<Uart>,
    output: Arc<ConsoleOutput>,
    drained: EventFd,
}

impl SerialPort {
    /// A port that writes to `output`, and interrupts by [`COM1_IRQ`].
    pub fn new(vm: &Vm, output: Arc<ConsoleOutput>) -> Result<Arc<Self>, vm::Error> {
        let made = |flags| EventFd::new(flags | EFD_CLOEXEC);
        let failed = |source| vm::Error::Call { doing: "Making the console's eventfds".into(), source };
        let interrupt = made(0).map_err(failed)?;
        let drained = made(EFD_NONBLOCK).map_err(failed)?;
        vm.attach_irqfd(&interrupt, COM1_IRQ)?;
        let events = Drained(drained.try_clone().map_err(failed)?);
        let uart = Serial::with_events(Interrupt(interrupt), events, Vec::with_capacity(1));
        Ok(Arc::new(Self { uart: Mutex::new(uart), output, drained }))
    }

    /// Back to power-on, and [`ConsoleOutput::hurry`] is over. What the guest had not read yet is lost.
    pub fn reset(&self) -> io::Result<()> {
        self.output.take_time();
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
            *byte = u8::try_from(at).map_or(0xff, |at| if at < 8 { read(&mut uart, at) } else { 0xff });
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
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;
    use crate::control::Recent;

    const THR: u64 = 0;
    const SCRATCH: u64 = 7;

    fn output(reader: Option<OwnedFd>, log: Option<Box<dyn Write + Send>>) -> Arc<ConsoleOutput> {
        ConsoleOutput::new(reader, log, &Arc::new(Recent::new().unwrap())).unwrap()
    }

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
        Some((SerialPort::new(&vm, output(Some(writer), None)).unwrap(), reader))
    }

    #[test]
    fn input_is_pending_until_the_last_byte_is_read() {
        let Some((port, _reader)) = port() else { return };
        let register = |offset| {
            let mut value = [0];
            port.read(offset, &mut value);
            value[0]
        };
        let (rbr, iir) = (0, u64::from(IIR));
        port.receive(b"unannounced");
        assert_eq!(register(iir), 0xc1);
        let _ = port.write(u64::from(IER), &[1]);
        assert_eq!(register(iir), 0xc4);
        for byte in b"unannounce" {
            assert_eq!((register(rbr), register(iir)), (*byte, 0xc4));
        }
        assert_eq!((register(rbr), register(iir)), (b'd', 0xc1));
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
        let port = SerialPort::new(&vm, output(Some(writer), None)).unwrap();
        port.output.hurry();
        let _ = port.write(THR, b"a");
        let _ = port.write(THR, b"b");
        port.output.take_time();
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
        let port =
            SerialPort::new(&vm, ConsoleOutput::new(None, Some(Box::new(kept.clone())), &recent).unwrap())
                .unwrap();
        let said: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for byte in &said {
            let _ = port.write(THR, &[*byte]);
        }
        assert!(recent.more().is_raised());
        port.output.write_log();
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
        port.output.hurry();
        writer.join().unwrap();
        assert!(waited);
    }

    #[test]
    fn a_reset_forgets_registers_and_input_and_writes_go_out_again() {
        let Some((port, reader)) = port() else { return };
        let _ = port.write(u64::from(LCR), &[0x80]);
        let _ = port.write(SCRATCH, &[0x55]);
        port.receive(b"typed");
        port.output.hurry();
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
