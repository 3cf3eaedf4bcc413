//! Nobody writes to an image that somebody else uses, whether with our tools or QEMU's.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmm::disk::{Access, Chain, Format, Rules};

use crate::machine::{self, Guest};
use crate::tools::{available, fails, run};

#[test]
fn qemu_sees_our_locks() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, "throughway image create a.qcow2 8MiB");
    let path = at.join("a.qcow2");
    let writer = Chain::open(&path, Format::Qcow2, &Rules::new(Access::Write)).unwrap().image().unwrap();
    assert!(fails(at, "qemu-img info a.qcow2").1.contains("lock"));
    assert!(fails(at, "qemu-img resize a.qcow2 9M").1.contains("lock"));
    drop(writer);
    let _reader = Chain::open(&path, Format::Qcow2, &Rules::new(Access::Read)).unwrap();
    run(at, "qemu-img info a.qcow2");
    assert!(fails(at, "qemu-img resize a.qcow2 9M").1.contains("lock"));
}

#[test]
fn two_guests_do_not_have_one_disk() {
    if !available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, "throughway image create a.raw 8MiB");
    let path = at.join("a.raw");
    let guest = |options: &str| {
        let mut guest = Guest::new("test=obey");
        guest.disks = format!("{{root: {{path: \"{}\"{options}}}}}", path.display());
        guest
    };
    let mut first = guest("").start();
    first.wait_for("ready");
    for options in ["", ", read-only: true", ", device: cdrom"] {
        let second = guest(options).run();
        assert_eq!(second.code, Some(1), "{}", second.log);
        let wanted = format!(": error: {} is in use by another guest or tool", path.display());
        assert!(second.log.contains(&wanted) && second.log.matches("error: ").count() == 1, "{}", second.log);
    }
    first.kill();
    let (mut first, mut second) = (guest(", read-only: true").start(), guest(", device: cdrom").start());
    first.wait_for("ready");
    second.wait_for("ready");
    first.kill();
    second.kill();
}

#[test]
fn we_see_those_of_qemu() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, "throughway image create a.qcow2 8MiB");
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "qcow2", "a.qcow2"]).current_dir(at).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut qemu = qemu.spawn().unwrap();
    let path = at.join("a.qcow2");
    let deadline = Instant::now() + Duration::from_secs(60);
    while Chain::open(&path, Format::Qcow2, &Rules::new(Access::Read)).is_ok() {
        assert!(Instant::now() < deadline, "qemu-io never locks its image");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (code, said) = fails(at, "throughway image resize a.qcow2 9MiB");
    assert_eq!(code, 1);
    assert!(said.contains("a.qcow2 is in use by another guest or tool"), "{said}");
    assert!(fails(at, "throughway image convert a.qcow2 b.raw").1.contains("is in use"));
    assert!(!at.join("b.raw").exists());

    qemu.stdin.take().unwrap().write_all(b"quit\n").unwrap();
    assert!(qemu.wait().unwrap().success());
    run(at, "throughway image resize a.qcow2 9MiB");
}
