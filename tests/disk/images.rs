//! What we write QEMU reads, and the other way round.

use std::os::unix::fs::MetadataExt;

use crate::tools::{available, fails, run, sample};

#[test]
fn images_of_ours_are_read_by_qemu() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let raw = sample(at, "a.raw");
    for cluster in ["512KiB", "64KiB", "4KiB"] {
        run(at, &format!("throughway image convert a.raw b.qcow2 --force --cluster-size {cluster}"));
        run(at, "qemu-img check b.qcow2");
        run(at, "qemu-img compare -f raw -F qcow2 a.raw b.qcow2");
        run(at, "throughway image check b.qcow2");
    }
    run(at, "throughway image convert a.raw c.raw");
    run(at, "cmp a.raw c.raw");
    let taken = |path: &std::path::Path| std::fs::metadata(path).unwrap().blocks() * 512;
    assert!(taken(&at.join("c.raw")) <= taken(&raw) + (1 << 20));
}

#[test]
fn images_of_qemu_are_read_by_us() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sample(at, "a.raw");
    for options in
        ["", "-c", "-o compat=0.10", "-o cluster_size=2M", "-o refcount_bits=1", "-o refcount_bits=64 -c"]
    {
        run(at, &format!("qemu-img convert -f raw -O qcow2 {options} a.raw b.qcow2"));
        run(at, "throughway image check b.qcow2");
        run(at, "throughway image convert b.qcow2 c.raw --force");
        run(at, "cmp a.raw c.raw");
    }
    let (code, said) = {
        run(at, "qemu-img convert -f raw -O qcow2 -o compression_type=zstd -c a.raw z.qcow2");
        fails(at, "throughway image info z.qcow2")
    };
    assert_eq!(code, 1);
    assert!(said.contains("compressed with zstd, which is not supported"), "{said}");
}

#[test]
fn snapshots_are_counted_as_qemu_counts_them() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sample(at, "a.raw");
    run(at, "qemu-img convert -f raw -O qcow2 a.raw b.qcow2");
    run(at, "qemu-img snapshot -c first b.qcow2");
    let mut write = std::process::Command::new("qemu-io");
    write.args(["-f", "qcow2", "-c", "write -P 7 1M 3M", "b.qcow2"]).current_dir(at);
    assert!(write.output().unwrap().status.success());
    run(at, "qemu-img snapshot -c second b.qcow2");
    run(at, "qemu-img check b.qcow2");
    assert!(run(at, "throughway image check b.qcow2").contains("no errors"));
    let (_, said) = fails(at, "throughway image resize b.qcow2 50MiB");
    assert!(said.contains("internal snapshots"), "{said}");
}

#[test]
fn a_disk_on_another_is_the_same_for_both() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sample(at, "a.raw");
    run(at, "throughway image convert a.raw base.qcow2");
    run(at, "throughway image create top.qcow2 --backing base.qcow2");
    run(at, "qemu-img compare -f raw -F qcow2 a.raw top.qcow2");
    run(at, "throughway image resize top.qcow2 +20MiB");
    run(at, "qemu-img check top.qcow2");
    run(at, "qemu-img convert -f qcow2 -O raw top.qcow2 theirs.raw");
    run(at, "throughway image convert top.qcow2 ours.raw");
    run(at, "cmp theirs.raw ours.raw");
    run(at, "throughway image resize top.qcow2 10MiB --shrink");
    run(at, "qemu-img check top.qcow2");
    run(at, "throughway image check top.qcow2");
}

#[test]
fn preallocated_images_are_sound() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, "throughway image create full.qcow2 8MiB --preallocate full");
    run(at, "throughway image create full.raw 8MiB --preallocate full");
    run(at, "qemu-img check full.qcow2");
    run(at, "qemu-img compare -f raw -F qcow2 full.raw full.qcow2");
    assert!(std::fs::metadata(at.join("full.raw")).unwrap().blocks() * 512 >= 8 << 20);
}

#[test]
fn a_full_disk_leaves_nothing_half_there() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sample(at, "a.raw");
    std::fs::create_dir(at.join("small")).unwrap();
    let binary = env!("CARGO_BIN_EXE_throughway");
    let script = format!(
        "mount -t tmpfs -o size=600k none small && echo before > small/old.qcow2 && {binary} image convert a.raw \
         small/new.qcow2; echo $?; {binary} image convert a.raw small/old.qcow2 --force; echo $?; ls -A small; cat small/old.qcow2"
    );
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script])
        .current_dir(at)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3\n3\nold.qcow2\nbefore\n", "{said}");
    assert!(said.contains("No space left on device"), "{said}");
}
