//! A thread is locked up as the process is, and tries what it may and what it may not.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::*;

fn told(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a thing that cannot be done is answered with.
const NO: [i32; 3] = [libc::EPERM, libc::EACCES, libc::ENOSYS];

type Attempt = (&'static str, fn() -> io::Result<()>);

const FORBIDDEN: &[Attempt] = &[
    ("open /etc/shadow", || open(c"/etc/shadow", libc::O_RDONLY)),
    ("open a file that all may read", || open(c"/etc/passwd", libc::O_RDONLY)),
    ("open memory", || open(c"/proc/self/mem", libc::O_RDWR)),
    ("make a file elsewhere", || open(c"/tmp/throughway-web-was-here", libc::O_CREAT | libc::O_WRONLY)),
    ("list a folder", || open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)),
    ("execute a program", || {
        // One that fails the test where it begins.
        let arguments = [c"/bin/false".as_ptr(), std::ptr::null()];
        // SAFETY: strings and arrays end as they must.
        unsafe { told(libc::syscall(libc::SYS_execve, arguments[0], arguments.as_ptr(), 0)).map(drop) }
    }),
    ("make a socket", || {
        // SAFETY: numbers only.
        told(unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0) }).map(drop)
    }),
    ("connect", || TcpStream::connect("127.0.0.1:1").map(drop)),
    ("listen", || TcpListener::bind("127.0.0.1:0").map(drop)),
    ("trace another process", || {
        // SAFETY: numbers only.
        told(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0) }).map(drop)
    }),
    // SAFETY: numbers only.
    ("signal another process", || told(unsafe { libc::syscall(libc::SYS_kill, 1, 0) }).map(drop)),
    ("read another process' memory", || {
        // SAFETY: no bytes are asked for.
        told(unsafe { libc::syscall(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0) }).map(drop)
    }),
    ("mount", || {
        let (none, on) = (c"none".as_ptr(), c"/mnt".as_ptr());
        // SAFETY: strings that end as they must.
        told(unsafe { libc::syscall(libc::SYS_mount, none, on, c"tmpfs".as_ptr(), 0, 0) }).map(drop)
    }),
    // SAFETY: numbers only.
    ("become root", || told(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(drop)),
    ("make a process", || {
        // SAFETY: the child ends at once.
        match told(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        }
    }),
    // SAFETY: numbers only.
    ("have a namespace", || told(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER) }).map(drop)),
    ("make memory code", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping of its own, wherever there is room.
        told(unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, libc::PROT_EXEC, flags, -1, 0) }).map(drop)
    }),
    ("load a program into the kernel", || {
        // SAFETY: numbers only.
        told(unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) }).map(drop)
    }),
    // SAFETY: numbers only.
    ("have a ring", || told(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) }).map(drop)),
];

fn open(path: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: a string that ends as it must.
    told(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }).map(drop)
}

/// On a thread that is locked up with a folder and a file of users, and refused what is on no list.
fn locked<T: Send + 'static>(
    folder: &Path,
    users: Option<PathBuf>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    trap::install(Then::Refuse).unwrap();
    let folder = File::open(folder).unwrap();
    let thread = std::thread::spawn(move || {
        let lacks = lock_thread(folder.as_fd(), users.as_deref()).unwrap();
        assert!(lacks.is_empty(), "this kernel lacks {lacks}");
        work()
    });
    thread.join().unwrap()
}

#[test]
fn nothing_of_a_list_of_forbidden_things_can_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let tried = locked(folder.path(), None, || {
        let one = |(name, attempt): &Attempt| {
            (*name, attempt().err().and_then(|error| error.raw_os_error()).unwrap_or(0))
        };
        FORBIDDEN.iter().map(one).collect::<Vec<_>>()
    });
    for (name, errno) in &tried {
        // Any other one says that the attempt was wrong, and nothing of the walls.
        assert!(NO.contains(errno), "{name}: errno {errno}");
    }
    assert_eq!(tried.len(), FORBIDDEN.len());
    assert!(!Path::new("/tmp/throughway-web-was-here").exists());
}

#[test]
fn what_it_is_there_for_can_be_done() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let users = outside.path().join("users.yaml");
    fs::write(&users, "one").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let (own, read) = (folder.path().to_owned(), users.clone());
    let (go_on, changed) = mpsc::channel();
    let (first, ready) = mpsc::channel();
    let changing = std::thread::spawn({
        let users = users.clone();
        move || {
            ready.recv().unwrap();
            // As an editor does it.
            fs::write(users.with_extension("new"), "two").unwrap();
            fs::rename(users.with_extension("new"), users).unwrap();
            go_on.send(()).unwrap();
        }
    });
    locked(folder.path(), Some(users.clone()), move || {
        fs::write(own.join("a"), "text").unwrap();
        fs::rename(own.join("a"), own.join("b")).unwrap();
        fs::create_dir(own.join("tls")).unwrap();
        File::create(own.join("tls/key")).unwrap().sync_all().unwrap();
        assert_eq!(fs::read_to_string(own.join("b")).unwrap(), "text");
        fs::remove_file(own.join("b")).unwrap();
        assert_eq!(fs::read_to_string(&read).unwrap(), "one");
        first.send(()).unwrap();
        changed.recv().unwrap();
        assert_eq!(fs::read_to_string(&read).unwrap(), "two");
        assert_eq!(fs::write(&read, "three").unwrap_err().raw_os_error(), Some(libc::EACCES));

        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
        drop(stream);
        let thread = std::thread::spawn(|| UnixStream::pair().map(drop));
        assert!(thread.join().unwrap().is_err(), "threads that it makes are locked up, too");
    });
    changing.join().unwrap();
    assert_eq!(client.join().unwrap(), "hello");
    assert_eq!(fs::read_to_string(users).unwrap(), "two");
}

#[test]
fn a_process_with_threads_is_not_locked_up_in_part() {
    // That of the tests has more than one.
    let folder = tempfile::tempdir().unwrap();
    let folder = File::open(folder.path()).unwrap();
    let error = std::thread::spawn(move || enter(folder.as_fd(), None).unwrap_err()).join().unwrap();
    assert!(error.to_string().contains("threads already"), "{error}");
}
