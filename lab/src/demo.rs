//! `cargo demo`: the main job end to end in the emulated box, ending on a picture.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::kernel::Flavour;
use crate::machine::{Event, Machine, RunFolder};
use crate::scenario::Scenario;
use crate::session::Lab;
use crate::{admin, fresh, progress, relay, tap};

/// How long the demonstration may take, boot included.
const WHOLE: Duration = Duration::from_secs(600);

/// How a demonstration is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernel of the box and its guest.
    pub kernel: Flavour,
    /// The `throughway` binary, built when none.
    pub binary: Option<PathBuf>,
    /// End after the picture instead of handing over the guest's console.
    pub exit: bool,
    /// The port of this machine's loopback at which the box's admin interface is, a free one when none.
    pub port: Option<u16>,
}

#[derive(Debug, Default)]
struct Seen {
    passed: usize,
    failed: usize,
    facts: BTreeMap<String, String>,
    ended: bool,
}

impl Seen {
    /// Takes in one line of the results port.
    fn take(&mut self, line: &str) {
        if let Some((name, value)) = line.strip_prefix("fact ").and_then(|fact| fact.split_once(' ')) {
            self.facts.insert(name.to_owned(), value.to_owned());
        } else if line.starts_with("##end demo ") {
            self.ended = true;
        } else if let Some(check) = tap::parse(line) {
            self.check(check);
        }
    }

    /// Shows one check, and counts it.
    fn check(&mut self, check: tap::Check) {
        let mark = if check.passed { "\u{1b}[32mok\u{1b}[0m    " } else { "\u{1b}[31mnot ok\u{1b}[0m" };
        let why = check.why.map(|why| format!(" ({why})")).unwrap_or_default();
        progress::say(&format!("  {mark} {}{why}", check.text));
        if check.passed {
            self.passed = self.passed.saturating_add(1);
        } else {
            self.failed = self.failed.saturating_add(1);
        }
    }

    fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("?", String::as_str)
    }

    /// Whether the picture has all it shows, and nothing failed.
    fn is_whole(&self, kernel: Flavour) -> bool {
        let admin: &[&str] = if kernel == Flavour::Debian { &ADMIN } else { &[] };
        self.failed == 0 && SHOWN.iter().chain(admin).all(|name| self.facts.contains_key(*name))
    }
}

/// The facts the picture is drawn from.
const SHOWN: [&str; 12] = [
    "pf",
    "pf-link",
    "vf",
    "group",
    "group-members",
    "guest-kernel",
    "guest-bdf",
    "mac",
    "ping",
    "out",
    "in",
    "interrupts",
];

/// Those of the admin interface. The iommufd kernel is small, and has not what the daemon wants (inotify).
const ADMIN: [&str; 2] = ["code", "fingerprint"];

/// Runs the demonstration; returns whether every step was seen to work.
///
/// # Errors
/// The box cannot be booted, or does not come to the demonstration's end.
pub fn run(options: &Options) -> Result<bool> {
    let mut shown = Shown::watch(options)?;
    if !shown.seen.facts.contains_key("interrupts") {
        bail!("The demonstration did not come to its end; its log is {}", shown.output.join("log").display());
    }
    anstream::println!("{}", picture(&shown.seen, shown.port));
    if shown.seen.facts.contains_key("stay") {
        anstream::eprintln!("The guest's console follows. `poweroff -f` ends the guest, Ctrl-A x the box.\n");
        relay::console(&mut shown.machine)?;
        return Ok(shown.seen.is_whole(options.kernel));
    }
    anstream::println!("{} passed, {} failed", shown.seen.passed, shown.seen.failed);
    Ok(shown.seen.ended && shown.seen.is_whole(options.kernel))
}

/// Runs the demonstration with Debian's kernel, and has `visit` come to the box that it leaves up: with the address of its
/// admin interface, and the code that claims it. Returns how many checks the demonstration passed and failed, and what the visit
/// came to; there is no visit where one of them failed.
///
/// # Errors
/// As [`run`]; and what `visit` returns.
pub fn visited<T>(visit: impl FnOnce(&str, &str) -> Result<T>) -> Result<(usize, usize, Option<T>)> {
    let options = Options { kernel: Flavour::Debian, binary: None, exit: false, port: None };
    let shown = Shown::watch(&options)?;
    let whole = shown.seen.is_whole(options.kernel) && shown.seen.facts.contains_key("stay");
    let url = format!("https://localhost:{}", shown.port);
    let visited = if whole { Some(visit(&url, shown.seen.fact("code"))?) } else { None };
    Ok((shown.seen.passed, shown.seen.failed, visited))
}

/// A box in which the demonstration was seen, to its end or to where it is a person's turn.
struct Shown {
    machine: Machine,
    seen: Seen,
    /// Where its admin interface is on this machine.
    port: u16,
    /// What it wrote.
    output: PathBuf,
    /// Its share, behind the machine that uses it.
    _run: RunFolder,
}

impl Shown {
    fn watch(options: &Options) -> Result<Self> {
        let binary = fresh::given(options.binary.as_deref())?;
        let lab = Lab::prepare(options.kernel)?;
        let run = lab.folder(Some(&binary))?;
        let share = run.path().join("share");
        let scenario = Scenario::read(&share.join("box/demo.sh"))?;
        fs::copy(&scenario.path, share.join("scenarios/demo.sh")).context("Placing the demonstration")?;
        let limit = if options.exit { scenario.timeout } else { 86_400 };
        fs::write(share.join("plan"), format!("demo {limit}\n")).context("Writing the plan")?;
        if !options.exit {
            fs::write(share.join("stay"), "").context("Asking the box to stay")?;
        }
        let output = fresh::target_folder()?.join("lab/demo");
        fs::create_dir_all(&output).with_context(|| format!("Creating {}", output.display()))?;
        let log = output.join("console.log");
        let kernel = options.kernel.name();
        progress::say(&format!("- Booting the emulated box, {kernel} kernel (console in {})", log.display()));
        let port = options.port.map_or_else(admin::free_port, Ok)?;
        let mut spec = lab.spec(&run);
        spec.forward = Some((port, admin::INSIDE));
        let machine = Machine::boot(lab.sysroot(), spec, &log)?;
        let mut seen = Seen::default();
        follow(&machine, &mut seen, |seen| {
            seen.ended || seen.facts.contains_key("stay") || seen.facts.contains_key("code")
        })?;
        if seen.facts.contains_key("code") {
            seen.check(answers(port, &share.join("out/demo/certificate.der")));
        }
        follow(&machine, &mut seen, |seen| seen.ended || seen.facts.contains_key("stay"))?;
        keep(&share.join("out/demo"), &output)?;
        Ok(Self { machine, seen, port, output, _run: run })
    }
}

/// Whether this machine comes to the box's admin interface, and to nobody else in its place.
fn answers(port: u16, certificate: &Path) -> tap::Check {
    let seen = fs::read(certificate)
        .context("Reading the box's certificate")
        .and_then(|bytes| admin::is_well(port, &bytes));
    tap::Check {
        passed: seen.is_ok(),
        text: format!("its admin interface answers this machine, at https://localhost:{port}"),
        why: seen.err().map(|error| format!("{error:#}")),
    }
}

fn follow(machine: &Machine, seen: &mut Seen, until: impl Fn(&Seen) -> bool) -> Result<()> {
    let deadline = Instant::now().checked_add(WHOLE).context("Computing a deadline")?;
    while !until(seen) {
        match machine.next(deadline) {
            Event::Result(line) => seen.take(&line),
            Event::Console(_) => {}
            Event::Ended => bail!("The box ended before the demonstration did"),
            Event::Silence => bail!("The demonstration took more than {} s", WHOLE.as_secs()),
        }
    }
    Ok(())
}

/// Keeps what the box wrote: its share goes away with the run.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.filter_map(std::result::Result::ok).filter(|entry| entry.path().is_file()) {
        let name = entry.file_name();
        fs::copy(entry.path(), to.join(&name)).with_context(|| format!("Keeping {}", name.display()))?;
    }
    Ok(())
}

/// Draws what was seen.
fn picture(seen: &Seen, port: u16) -> String {
    let alone = if seen.fact("group-members") == "1" { "it alone" } else { "with others" };
    let host = [
        ("VF 0", format!("{}  vfio-pci", seen.fact("vf"))),
        ("PF", format!("{}  igb  {}", seen.fact("pf"), seen.fact("pf-link"))),
        ("address", "10.9.0.1".to_owned()),
    ];
    let iommu = [("group", format!("{} ({alone})", seen.fact("group")))];
    let guest = [
        ("kernel", format!("Linux {}", seen.fact("guest-kernel"))),
        ("its card", format!("{}  igbvf  {}", seen.fact("guest-bdf"), seen.fact("mac"))),
        ("address", "10.9.0.2".to_owned()),
    ];
    let boxes: [(&str, &[(&str, String)]); 3] =
        [("THE GUEST (throughway's own VMM on KVM)", &guest), ("THE IOMMU", &iommu), ("THE HOST", &host)];
    let width: usize = 62;
    let mut lines = vec![String::new()];
    for (index, (title, rows)) in boxes.iter().enumerate() {
        if index > 0 {
            lines.push(format!("  {:>32}", "|"));
        }
        lines.push(format!(
            "  +-- {title} {}+",
            "-".repeat(width.saturating_sub(title.len()).saturating_sub(4))
        ));
        for (name, value) in *rows {
            lines.push(format!("  | {name:<10} {value:<50}|"));
        }
        lines.push(format!("  +{}+", "-".repeat(width)));
    }
    lines.push(String::new());
    lines.push(format!("  ping through the VF      {}  (min/avg/max)", seen.fact("ping")));
    lines.push(format!("  TCP out of the guest     {} Mbit/s", seen.fact("out")));
    lines.push(format!("  TCP into the guest       {} Mbit/s", seen.fact("in")));
    lines.push(format!("  VF interrupts meanwhile  {}, delivered to the guest", seen.fact("interrupts")));
    lines.push(
        "  (all of it in software emulation: the figures say that it works, not how fast it is)".to_owned(),
    );
    lines.push(String::new());
    if seen.facts.contains_key("code") {
        lines.push(format!("  The admin interface      https://localhost:{port}"));
        lines.push(format!("  claimed with the code    {}", seen.fact("code")));
        let mut name = "its certificate, SHA-256";
        for half in halves(seen.fact("fingerprint")) {
            lines.push(format!("  {name:<24} {half}"));
            name = "";
        }
        lines.push(String::new());
    }
    lines.join("\n")
}

/// A fingerprint's two lines.
fn halves(fingerprint: &str) -> [&str; 2] {
    fingerprint
        .split_at_checked(fingerprint.len().div_ceil(2))
        .map_or([fingerprint, ""], |(one, two)| [one, two])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_box_says_is_kept() {
        let mut seen = Seen::default();
        seen.take("fact vf 0000:01:10.0");
        seen.take("ok 1 - a");
        seen.take("not ok 2 - b # c");
        seen.take("##end demo 0");
        assert_eq!(seen.fact("vf"), "0000:01:10.0");
        assert_eq!((seen.passed, seen.failed, seen.ended), (1, 1, true));
        assert!(!seen.is_whole(Flavour::Iommufd));
    }

    #[test]
    fn a_demonstration_is_whole_with_every_fact_and_no_failure() {
        let mut seen = Seen::default();
        for name in SHOWN {
            assert!(!seen.is_whole(Flavour::Iommufd));
            seen.take(&format!("fact {name} 1"));
        }
        assert!(seen.is_whole(Flavour::Iommufd));
        for name in ADMIN {
            assert!(!seen.is_whole(Flavour::Debian));
            seen.take(&format!("fact {name} 1"));
        }
        assert!(seen.is_whole(Flavour::Debian));
        seen.take("not ok 1 - x");
        assert!(!seen.is_whole(Flavour::Iommufd));
    }
}
