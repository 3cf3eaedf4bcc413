//! Writes the list of PCI names out as text, in the format of pci.ids.
//!
//! The tables of `pci_ids` are thousands of pointers. Linked into a position-independent program, each is relocated when
//! the program starts: two megabytes written and kept by every process, most of which never look up a name.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut names = String::new();
    for vendor in pci_ids::Vendors::iter() {
        let _ = writeln!(names, "{:04x}  {}", vendor.id(), vendor.name());
        for device in vendor.devices() {
            let _ = writeln!(names, "\t{:04x}  {}", device.id(), device.name());
        }
    }
    let mut classes = String::new();
    for class in pci_ids::Classes::iter() {
        for subclass in class.subclasses() {
            let _ = writeln!(classes, "{:02x}{:02x}  {}", class.id(), subclass.id(), subclass.name());
        }
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(folder.join("names"), names).expect("writing the names");
    fs::write(folder.join("classes"), classes).expect("writing the classes");
}
