//! What the figures were measured on, and when.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// One line: date, processor, kernel, and how KVM runs guests here.
#[must_use]
pub fn line() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let (model, cores, nested) = processor(&cpuinfo);
    let release = read("/proc/sys/kernel/osrelease");
    let nested = if nested { "itself a virtual machine" } else { "hardware" };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!(
        "{}; {model}, {cores} CPUs, {nested}; Linux {}; KVM by {}",
        date(seconds / 86_400),
        release.trim(),
        kvm(&modules())
    )
}

/// Model, number of CPUs, and whether it runs in a virtual machine.
fn processor(cpuinfo: &str) -> (String, usize, bool) {
    let value = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    (value("model name").to_owned(), cores, value("flags").split(' ').any(|flag| flag == "hypervisor"))
}

/// Names of the kernel's modules, built in or not.
fn modules() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/module") else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// The module behind /dev/kvm.
fn kvm(modules: &[String]) -> String {
    let mut found: Vec<_> =
        modules.iter().map(String::as_str).filter(|name| name.starts_with("kvm_")).collect();
    found.sort_unstable();
    match found.as_slice() {
        [] => "a module that it does not name".to_owned(),
        found if found.contains(&"kvm_pvm") => "kvm_pvm (in software: no vmx or svm)".to_owned(),
        found => found.join(", "),
    }
}

/// The day with this number since 1970-01-01, as YYYY-MM-DD.
fn date(days: u64) -> String {
    let (mut year, mut left) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        (year, left) = (year + 1, left - length);
    }
    let mut month = 1;
    for length in [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        (month, left) = (month + 1, left - length);
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(19_783), "2024-03-01");
        assert_eq!(date(20_088), "2024-12-31");
        assert_eq!(date(20_778), "2026-11-21");
    }

    #[test]
    fn a_machine_is_told_from_its_files() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\n";
        assert_eq!(processor(cpuinfo), ("A".to_owned(), 2, true));
        let named = |names: &[&str]| kvm(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert!(named(&["kvm_pvm", "ext4"]).starts_with("kvm_pvm"));
        assert_eq!(named(&["kvm", "kvm_amd"]), "kvm_amd");
    }
}
