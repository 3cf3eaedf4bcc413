//! A word over vsock(7), for the lab: `vsock listen PORT` prints what one peer says and answers `heard`; `vsock say CID PORT
//! WORD` says it and prints the answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

fn socket() -> io::Result<File> {
    // SAFETY: socket(2) takes numbers; the answer is checked and owned here alone.
    unsafe {
        match libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) {
            ..0 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

type Call = unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

/// Calls `bind` or `connect`.
fn call(call: Call, socket: &File, cid: u32, port: u32) -> io::Result<()> {
    // SAFETY: an address of zeroes is one.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = u16::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    (address.svm_cid, address.svm_port) = (cid, port);
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and the address is as long as is said.
    match unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn listen(port: u32) -> io::Result<()> {
    let socket = socket()?;
    call(libc::bind, &socket, libc::VMADDR_CID_ANY, port)?;
    // SAFETY: both calls take an open socket and numbers; the answer of accept is checked and owned here alone.
    let mut peer = unsafe {
        if libc::listen(socket.as_raw_fd(), 1) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::accept(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) {
            ..0 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    let mut word = [0; 64];
    let count = peer.read(&mut word)?;
    println!("{}", String::from_utf8_lossy(word.get(..count).unwrap_or_default()));
    peer.write_all(b"heard")
}

fn say(cid: u32, port: u32, word: &str) -> io::Result<()> {
    let mut socket = socket()?;
    call(libc::connect, &socket, cid, port)?;
    socket.write_all(word.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse().map_err(io::Error::other);
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["listen", _] => listen(number(&words[1])?),
        ["say", _, _, word] => say(number(&words[1])?, number(&words[2])?, word),
        _ => Err(io::Error::other("vsock listen PORT, or vsock say CID PORT WORD")),
    }
}
