//! Starts that cannot work: one clear error, and the exit code for a wrong file. `tests/it/run.md` has those that need no
//! machine.

use std::path::PathBuf;

use crate::image;
use crate::machine::{Ended, Guest, available};

/// A file with this content; the folder goes when it is dropped.
fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn is_one_error(ended: &Ended, why: &str) {
    assert_eq!((ended.code, &*ended.console), (Some(1), ""), "{}", ended.log);
    assert!(ended.log.contains(why), "{why}: {}", ended.log);
    let lines: Vec<&str> = ended.log.lines().collect();
    match &lines[..] {
        [line] => assert!(line.starts_with("error: "), "{}", ended.log),
        // At its line of the file, which is shown with a mark below it.
        [line, _, mark] => assert!(line.contains(": error: ") && mark.trim() == "^", "{}", ended.log),
        _ => panic!("{}", ended.log),
    }
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    if !available() {
        return;
    }
    let ourselves = std::fs::read(env!("CARGO_BIN_EXE_throughway")).unwrap();
    for (content, why) in [
        (&b""[..], "the file is empty"),
        (b"\x1f\x8b and more", "gzip"),
        (b"MZ and more", "EFI"),
        (&[0; 4096], "neither a bzImage nor an ELF file"),
        (&ourselves, "without a PVH entry note"),
    ] {
        let (_folder, kernel) = file(content);
        is_one_error(&Guest { kernel, ..Guest::new("") }.run(), why);
    }
}

#[test]
fn kernels_cut_off_anywhere_are_refused() {
    if !available() {
        return;
    }
    for image in [image::elf(), image::bzimage()] {
        let whole = std::fs::read(image).unwrap();
        // Headers, first segment, and all but the last of what is loaded.
        for length in [5, 63, 100, 0x180, 0x210, 0x300, 0x500, 0x2000, 0x8000] {
            let (_folder, kernel) = file(&whole[..length]);
            let ended = Guest { kernel, ..Guest::new("test=hello") }.run();
            is_one_error(&ended, "kernel");
        }
    }
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_with_its_size() {
    if !available() {
        return;
    }
    for kernel in [image::elf(), image::bzimage()] {
        let ended = Guest { kernel, memory: "2MiB".into(), ..Guest::new("test=hello") }.run();
        is_one_error(&ended, "give the guest more memory");
    }
}

#[test]
fn an_initial_ram_disk_that_is_missing_or_does_not_fit_is_refused() {
    if !available() {
        return;
    }
    let initrd =
        |path: &std::path::Path| Guest { initrd: Some(path.into()), ..Guest::new("test=hello") }.run();
    let (folder, file) = file(b"");
    is_one_error(&initrd(&folder.path().join("none")), "Opening the initial RAM disk");
    is_one_error(&initrd(folder.path()), "is not a file");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(64 << 20).unwrap();
    is_one_error(&initrd(&file), "The initial RAM disk does not fit");
}

#[test]
fn a_command_line_that_linux_would_cut_is_refused() {
    if !available() {
        return;
    }
    let longest = format!("test=hello {}", "x".repeat(2047 - 11));
    assert_eq!(Guest::new(&longest).run().code, Some(0));
    is_one_error(&Guest::new(&(longest + "x")).run(), "2048 bytes long");
}

#[test]
fn huge_pages_that_the_host_has_not_are_refused() {
    if !available() {
        return;
    }
    // 64 TiB of them no host has.
    let memory = "{size: 64TiB, hugepages: 1GiB}".into();
    is_one_error(
        &Guest { memory, ..Guest::new("test=hello") }.run(),
        "wants 65536 huge pages of 1GiB, and the host has ",
    );
}
