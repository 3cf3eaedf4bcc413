//! The test guest: compiled with the system's C compiler, once for each run of the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const FLAGS: &[&str] = &[
    "-O2",
    "-m64",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pic",
    // Neither red zone nor vector registers: exceptions come on the same stack, and no one has enabled SSE.
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
];

const SOURCES: [&str; 15] = [
    "start.S",
    "main.c",
    "boot.c",
    "console.c",
    "power.c",
    "chipset.c",
    "pci.c",
    "device.c",
    "disk.c",
    "hotplug.c",
    "virtio.c",
    "hvc.c",
    "topology.c",
    "trouble.c",
    "garbage.c",
];

/// As an ELF file with a PVH note.
pub(crate) fn elf() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("guest.elf", &[])).clone()
}

/// As a bzImage of the Linux 64-bit boot protocol: a setup header, and the same image as flat bytes.
pub(crate) fn bzimage() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let payload = std::fs::read(compile("guest.bin", &["-Wl,--oformat=binary"])).unwrap();
        publish("guest.bz", &[setup(&payload), payload].concat())
    };
    BUILT.get_or_init(build).clone()
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A finished file by `name`, complete whenever it is there: another run may be reading the old one.
fn publish(name: &str, content: &[u8]) -> PathBuf {
    let scratch = folder().join(format!("{name}.{}", std::process::id()));
    std::fs::write(&scratch, content).unwrap();
    let path = folder().join(name);
    std::fs::rename(scratch, &path).unwrap();
    path
}

fn compile(name: &str, more: &[&str]) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kvm/guest");
    let scratch = folder().join(format!("{name}.{}.building", std::process::id()));
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(&sources).args(FLAGS).args(more).args(["-T", "kernel.ld"]).args(SOURCES);
    let done = cc.arg("-o").arg(&scratch).output().expect("the C compiler, cc, is there");
    assert!(done.status.success(), "{cc:?}\n{}", String::from_utf8_lossy(&done.stderr));
    let content = std::fs::read(&scratch).unwrap();
    std::fs::remove_file(scratch).unwrap();
    publish(name, &content)
}

/// Boot sector and one sector of setup with the header that boot.rst describes.
fn setup(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &u32::try_from(payload.len().div_ceil(16)).unwrap().to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump, to behind the header
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x20_0000_u64.to_le_bytes()); // pref_address, where kernel.ld links
    put(0x260, &0x20_0000_u32.to_le_bytes()); // init_size
    bytes
}
