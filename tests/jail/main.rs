//! What a guest's process can do where it is locked up: nothing of a list of forbidden things, on no kind of thread, and not by its
//! walls alone either; and each of them can be done outside, by the same calls.
//!
//! Without the harness of the standard library: a process that becomes two must have one thread.

use std::ffi::CStr;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use throughway::jail::walls::Walls;
use throughway::jail::{Files, Lacks, Machine, Split, User, Wire, filter, split, trap};
use vmm::threads::Kind;

/// The numbers of calls that have many arguments are as the kernel takes them: `-1` is an error, with errno.
fn told(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a thing that cannot be done is answered with.
const NO: [i32; 6] = [libc::EPERM, libc::EACCES, libc::ENOENT, libc::ENOSYS, libc::ENETUNREACH, libc::ESRCH];

/// Another process, and a number that lies in its memory.
struct Victim {
    pid: i32,
    secret: Box<u64>,
}

type Attempt = (&'static str, fn(&Victim) -> io::Result<()>);

/// What walls and filters both keep it from.
const FORBIDDEN: &[Attempt] = &[
    ("open a file", |_| open(c"/etc/passwd")),
    ("open a device", |_| open(c"/dev/null")),
    ("connect", |_| {
        // SAFETY: numbers, and an address that lives through the call. UDP: connecting sends nothing, and needs a route alone.
        unsafe {
            let socket = told(libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0))?;
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = 2;
            address.sin_port = 53_u16.to_be();
            address.sin_addr.s_addr = u32::from_be_bytes([127, 0, 0, 1]).to_be();
            let length = size_of_val(&address);
            told(libc::syscall(libc::SYS_connect, socket, &raw const address, length)).map(drop)
        }
    }),
    ("trace another process", |victim| {
        // SAFETY: numbers only.
        told(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, victim.pid, 0, 0) }).map(drop)
    }),
    ("execute a program", |_| {
        let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
        // SAFETY: strings and arrays end as they must.
        unsafe { told(libc::syscall(libc::SYS_execve, arguments[0], arguments.as_ptr(), 0)).map(drop) }
    }),
    ("mount", |_| {
        let (none, on) = (c"none".as_ptr(), c"/".as_ptr());
        // SAFETY: strings that end as they must.
        told(unsafe { libc::syscall(libc::SYS_mount, none, on, c"tmpfs".as_ptr(), 0, 0) }).map(drop)
    }),
    ("signal another process", |victim| {
        // SAFETY: numbers only.
        told(unsafe { libc::syscall(libc::SYS_kill, victim.pid, 0) }).map(drop)
    }),
    ("read another process' memory", |victim| {
        let mut bytes = [0_u8; 8];
        let from = (&raw const *victim.secret).cast_mut().cast();
        let ours = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 };
        let theirs = libc::iovec { iov_base: from, iov_len: 8 };
        let (call, one) = (libc::SYS_process_vm_readv, 1_usize);
        // SAFETY: ours is memory of ours; what theirs is, the kernel finds out.
        told(unsafe {
            libc::syscall(call, victim.pid, &raw const ours, one, &raw const theirs, one, 0_usize)
        })
        .map(drop)
    }),
    // SAFETY: numbers only.
    ("become root", |_| told(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(drop)),
    ("name the host", |_| {
        // SAFETY: one byte that is there.
        told(unsafe { libc::syscall(libc::SYS_sethostname, c"x".as_ptr(), 1) }).map(drop)
    }),
];

/// What filters alone keep it from: with the walls it would come to nothing.
const FILTERED: &[Attempt] = &[
    ("make a process", |_| {
        // SAFETY: the child ends at once.
        match told(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? {
            // SAFETY: as above.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        }
    }),
    // SAFETY: numbers only.
    ("have a namespace", |_| told(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUTS) }).map(drop)),
    ("make memory code", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping of its own, wherever there is room.
        told(unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, libc::PROT_EXEC, flags, -1, 0) }).map(drop)
    }),
];

fn open(path: &CStr) -> io::Result<()> {
    // SAFETY: a string that ends as it must.
    told(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY) }).map(drop)
}

/// Thread, attempt, errno; 0 where it was done.
type Result = (String, String, i32);

fn attempt(thread: &str, attempts: &[Attempt], victim: &Victim) -> Vec<Result> {
    let tried = |(name, attempt): &Attempt| {
        let errno = attempt(victim).err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        (thread.to_owned(), (*name).to_owned(), errno)
    };
    attempts.iter().map(tried).collect()
}

/// In the locked process.
fn inside(wire: &Wire, walls: Walls, filtered: bool, victim: Victim) -> io::Result<()> {
    let mut walls = walls;
    walls.apart();
    let Some((number, mut files)) = wire.receive::<(u32, throughway::jail::Place)>()? else { return Ok(()) };
    let _held = files.take(number.1)?;
    walls.enter(Some(number.0), None)?;
    let lacks = walls.lacks.to_string();
    let victim = Arc::new(victim);
    let mut tried = Vec::new();
    if filtered {
        filter::enter(Kind::Control)?;
        tried.extend(attempt("control", FORBIDDEN, &victim));
        tried.extend(attempt("control", FILTERED, &victim));
        let others = [
            ("vcpu", Kind::Vcpu),
            ("queue", Kind::Queue),
            ("hotplug", Kind::Hotplug),
            ("prefault", Kind::Prefault),
        ];
        for (name, kind) in others {
            let victim = Arc::clone(&victim);
            let thread = std::thread::spawn(move || -> io::Result<Vec<Result>> {
                filter::enter(kind)?;
                let mut tried = attempt(name, FILTERED, &victim);
                tried.extend(attempt(name, FORBIDDEN, &victim));
                Ok(tried)
            });
            tried.extend(thread.join().map_err(|_| io::Error::other("a thread fell over"))??);
        }
    } else {
        tried.extend(attempt("control, walls alone", FORBIDDEN, &victim));
    }
    wire.send(&(lacks, tried), Files::default())
}

/// What a locked process could do, and what its walls lack.
fn locked(filtered: bool) -> io::Result<(String, Vec<Result>)> {
    let victim = Victim { pid: std::process::id().cast_signed(), secret: Box::new(42) };
    match split()? {
        Split::Machine(wire, lacks, _) => {
            let walls = Walls::begin(lacks);
            trap::install(trap::Then::Refuse)?;
            let done = inside(&wire, walls, filtered, victim);
            if let Err(error) = &done {
                eprintln!("inside: {error}");
            }
            std::process::exit(i32::from(done.is_err()));
        }
        Split::Keeper(machine) => {
            let User { number, held } = User::of("jail-test").map_err(io::Error::other)?;
            let mut files = Files::default();
            let place = files.put(held);
            machine.wire()?.send(&(number, place), files)?;
            answer(machine)
        }
    }
}

fn answer(mut machine: Machine) -> io::Result<(String, Vec<Result>)> {
    let came = machine.wire()?.receive()?;
    let gone = machine.wait()?;
    let (came, _) = came.ok_or_else(|| io::Error::other(format!("it ended without a word: {gone:?}")))?;
    Ok(came)
}

/// The same attempt by a process that is not locked up, in mounts and names of its own.
fn outside((name, attempt): &Attempt, victim: &Victim) -> io::Result<()> {
    // SAFETY: this process has one thread; the child does what it may and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let apart = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
        // SAFETY: numbers, and strings that end as they must.
        let errno = unsafe {
            libc::unshare(apart);
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                c"".as_ptr(),
                libc::MS_PRIVATE | libc::MS_REC,
                c"".as_ptr().cast(),
            );
            attempt(victim).err().and_then(|error| error.raw_os_error()).unwrap_or(0)
        };
        // SAFETY: ends this process.
        unsafe { libc::_exit(errno) };
    }
    let mut status = 0;
    // SAFETY: the number is that of our child.
    told(unsafe { libc::waitpid(child, &raw mut status, 0) }.into())?;
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!("{name} fails outside, too: {}", libc::WEXITSTATUS(status))))
    }
}

/// Where there are no process numbers of its own, a process of the same user is kept from its signals by Landlock alone. None where
/// this kernel's does not know them (before Linux 6.12).
fn signals_by_landlock(victim: &Victim) -> io::Result<Option<Result>> {
    const WORKS: i32 = 0;
    const IS_OLD: i32 = 255;
    // SAFETY: this process has one thread; the child does what it may and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut walls = Walls::begin(Lacks::default());
        let errno = match walls.enter(None, None) {
            Ok(()) if walls.lacks.to_string().contains("Landlock") => IS_OLD,
            // SAFETY: numbers only.
            Ok(()) => match told(unsafe { libc::syscall(libc::SYS_kill, victim.pid, 0) }) {
                Ok(_) => WORKS,
                Err(error) => error.raw_os_error().unwrap_or(WORKS),
            },
            Err(error) => {
                eprintln!("inside: {error}");
                WORKS
            }
        };
        // SAFETY: ends this process.
        unsafe { libc::_exit(errno) };
    }
    let mut status = 0;
    // SAFETY: the number is that of our child.
    told(unsafe { libc::waitpid(child, &raw mut status, 0) }.into())?;
    let errno = libc::WEXITSTATUS(status);
    Ok((errno != IS_OLD).then(|| ("control, Landlock alone".into(), "signal another process".into(), errno)))
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can lock a process up whole");
        return ExitCode::from(u8::from(std::env::var("REQUIRE").is_ok_and(|all| all.contains("jail"))));
    }
    let (mut passed, mut failed) = (0, 0);
    // As the standard library's harness says it, for whoever counts.
    let mut tell = |what: String, wrong: Option<String>| {
        println!("test {what} ... {}", if wrong.is_some() { "FAILED" } else { "ok" });
        match wrong {
            Some(wrong) => {
                eprintln!("{what}: {wrong}");
                failed += 1;
            }
            None => passed += 1,
        }
    };
    let victim = Victim { pid: std::process::id().cast_signed(), secret: Box::new(42) };
    for attempt in FORBIDDEN.iter().chain(FILTERED) {
        let done = outside(attempt, &victim);
        tell(format!("outside: {}", attempt.0), done.err().map(|error| error.to_string()));
    }
    let mut attempts = Vec::new();
    for filtered in [false, true] {
        match locked(filtered) {
            Ok((lacks, tried)) => {
                println!("This host does not give: {}", if lacks.is_empty() { "nothing" } else { &lacks });
                attempts.extend(tried);
            }
            Err(error) => tell("the locked process".to_owned(), Some(error.to_string())),
        }
    }
    match signals_by_landlock(&victim) {
        Ok(None) => println!("skipped: Landlock of this kernel does not know of signals"),
        Ok(tried) => attempts.extend(tried),
        Err(error) => tell("a process in Landlock alone".to_owned(), Some(error.to_string())),
    }
    for (thread, what, errno) in attempts {
        let error = io::Error::from_raw_os_error(errno);
        // Any other one says that the attempt was wrong, and nothing of the jail.
        let wrong = (!NO.contains(&errno)).then(|| format!("errno {errno}"));
        tell(format!("{thread}: {what} ({error})"), wrong);
    }
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {outcome}. {passed} passed; {failed} failed; 0 ignored");
    ExitCode::from(u8::from(failed > 0))
}
