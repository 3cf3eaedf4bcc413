//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=appliance/build.rs");
    // main.rs
    println!("cargo:rustc-link-arg-bins=-Wl,-e,throughway_entry");
    // Relocations as a bitmap (DT_RELR, which the C library knows since glibc 2.36): a hundredth of what a start has to read.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
