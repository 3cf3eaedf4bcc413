//! What a system call that no filter allows ends with: a line that says which one, and the end of the process.

use std::io;

/// The code that the process ends with.
pub const CODE: i32 = 128 + libc::SIGSYS;

/// What a call that is not allowed leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The end of the process.
    End,
    /// The caller is told that it may not (EPERM), and goes on: to try what is forbidden, one after the other.
    Refuse,
}

/// Installs the handler; before any filter.
///
/// # Errors
/// What the system says.
pub fn install(then: Then) -> io::Result<()> {
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = match then {
        Then::End => end,
        Then::Refuse => refuse,
    };
    // SAFETY: a structure of zeroes is a valid start for it; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        match libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The number of the system call that a SIGSYS is about (siginfo_t, `si_syscall`).
fn number(info: *mut libc::siginfo_t) -> i32 {
    // signo, errno, code, and padding to the pointer `_call_addr`; then `_syscall`.
    // SAFETY: the kernel hands over a siginfo_t of 128 bytes, which is aligned for ints.
    unsafe { *info.cast::<i32>().add(6) }
}

extern "C" fn end(_signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let mut line = Line::default();
    line.text(b"error: This process made system call ");
    let call = number(info);
    line.number(call);
    if i64::from(call) == libc::SYS_ioctl {
        line.text(b" with 0x");
        line.hex(second(context));
    }
    line.text(b" on thread ");
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes 16 bytes at most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    line.text(name.split(|byte| *byte == 0).next().unwrap_or_default());
    line.text(b", which nothing in it does: it is ended\n");
    // SAFETY: write(2) and _exit(2) may be called in a signal handler.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(CODE);
    }
}

/// The second argument of the call that was made: what an ioctl(2) asks for.
fn second(context: *mut libc::c_void) -> u32 {
    // SAFETY: the kernel hands over the interrupted thread's state.
    let value = unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs.get(libc::REG_RSI as usize).copied()
    };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel takes 32 bits of it")]
    let number = value.unwrap_or(0).cast_unsigned() as u32;
    number
}

extern "C" fn refuse(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel hands over the interrupted thread's state, which it takes back when this returns.
    unsafe {
        if let Some(result) = (*context).uc_mcontext.gregs.get_mut(libc::REG_RAX as usize) {
            *result = -i64::from(libc::EPERM);
        }
    }
}

/// Text without an allocation.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 160], length: 0 }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *to = *from;
            self.length += 1;
        }
    }

    fn hex(&mut self, number: u32) {
        for place in (0..8_u32).rev() {
            let digit = number >> (4 * place) & 15;
            self.text(&[b"0123456789abcdef".get(digit as usize).copied().unwrap_or(b'?')]);
        }
    }

    fn number(&mut self, number: i32) {
        let mut power = 1_000_000_000;
        let mut begun = false;
        while power > 0 {
            let digit = u8::try_from(number / power % 10).unwrap_or(0);
            begun |= digit > 0 || power == 1;
            if begun {
                self.text(&[b'0' + digit]);
            }
            power /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written() {
        let written = |number| {
            let mut line = Line::default();
            line.number(number);
            String::from_utf8(line.bytes[..line.length].to_vec()).unwrap()
        };
        let mut line = Line::default();
        line.hex(0xae80_003f);
        assert_eq!(&line.bytes[..line.length], b"ae80003f");
        assert_eq!([0, 7, 59, 310, 1000].map(written), ["0", "7", "59", "310", "1000"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line::default();
        line.text(&[b'x'; 300]);
        assert_eq!(line.length, 160);
    }
}
