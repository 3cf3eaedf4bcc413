//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=appliance/build.rs");
    // main.rs
    println!("cargo:rustc-link-arg-bins=-Wl,-e,throughway_entry");
    // Relocations as a bitmap (DT_RELR, which the C library knows since glibc 2.36): a hundredth of what a start has to read.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // The standard library asks for these weakly ("if there is one"). Where one piece is made of all crates, that word counts for
    // everyone, a weak word takes nothing out of a static C library, and who calls such a function calls address 0 (ADR 0524).
    for name in ["copy_file_range", "gettid", "statx"] {
        println!("cargo:rustc-link-arg-bins=-Wl,--undefined={name}");
    }
}
