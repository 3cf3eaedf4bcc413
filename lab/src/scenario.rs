//! Scenario files: shell scripts that run in the box and print results. A file in
//! `tests/lab` is a scenario; nothing else has to know of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::installed::Installed;
use crate::kernel::Flavour;

/// Seconds a scenario has when its header names none.
const TIMEOUT: u64 = 120;

/// The suite that runs a scenario whose header names none, beside `lab-iommufd` for the second kernel.
pub const SUITE: &str = "lab";

/// One scenario file and what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The file's name without `.sh`, such as `00-box`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it proves, in one sentence.
    pub proves: String,
    /// The kernels it is meant for.
    pub kernels: Vec<Flavour>,
    /// Seconds after which it is ended.
    pub timeout: u64,
    /// Whether it wants a boot of its own (`# boot: own`).
    pub own_boot: bool,
    /// Whether it reboots the box (`# boot: reboots`), which then runs it again; it has a boot of its own, too.
    pub reboots: bool,
    /// Whether the box has two NUMA nodes (`# box: two-nodes`); it has a boot of its own, too.
    pub two_nodes: bool,
    /// Whether suites run it; with `# gates: no`, which is for one that has not been seen to hold often enough, only those
    /// who name it do.
    pub gates: bool,
    /// The suite that runs it (`# suite: uefi`), where it is not that of all others.
    pub suite: String,
    /// The Debian that it starts (`# image: debian`, `# image: live`), whose folder the box then can mount by its tag.
    pub image: Option<Installed>,
    /// Whether it needs the `throughway` binary (not with `# needs: nothing`).
    pub needs_throughway: bool,
    /// Examples of the crate `vfio` that it runs (`# examples: contract`), or of another one (`netconfig/vf`).
    pub examples: Vec<String>,
}

impl Scenario {
    /// Reads a file's header: the comment lines at its start.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("Reading the scenario {}", path.display()))?;
        Self::parse(path, &text).with_context(|| format!("Reading the header of {}", path.display()))
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut scenario = Self {
            name,
            path: path.to_owned(),
            proves: String::new(),
            kernels: vec![Flavour::Debian, Flavour::Iommufd],
            timeout: TIMEOUT,
            own_boot: false,
            reboots: false,
            two_nodes: false,
            gates: true,
            suite: SUITE.to_owned(),
            image: None,
            needs_throughway: true,
            examples: Vec::new(),
        };
        for line in text.lines().take_while(|line| line.starts_with('#')) {
            let Some((field, value)) = line.trim_start_matches(['#', '!', ' ']).split_once(": ") else {
                continue;
            };
            let value = value.trim();
            match field {
                "proves" => value.clone_into(&mut scenario.proves),
                "timeout" => {
                    scenario.timeout = value.parse().with_context(|| format!("timeout is {value:?}"))?
                }
                "gates" => scenario.gates = value != "no",
                "suite" => value.clone_into(&mut scenario.suite),
                "image" => match Installed::named(value) {
                    None => bail!("there is no image {value:?}, only debian and live"),
                    image => scenario.image = image,
                },
                "needs" => scenario.needs_throughway = value != "nothing",
                "examples" => scenario.examples = value.split_whitespace().map(str::to_owned).collect(),
                "boot" => {
                    scenario.reboots = value == "reboots";
                    scenario.own_boot |= scenario.reboots || value == "own";
                }
                "box" if value == "two-nodes" => {
                    scenario.two_nodes = true;
                    scenario.own_boot = true;
                }
                "box" => bail!("there is no box {value:?}, only two-nodes"),
                "kernels" => {
                    let named = |name: &str| {
                        [Flavour::Debian, Flavour::Iommufd].into_iter().find(|one| one.name() == name)
                    };
                    scenario.kernels = value
                        .split_whitespace()
                        .map(|name| named(name).with_context(|| format!("there is no kernel {name:?}")))
                        .collect::<Result<_>>()?;
                }
                _ => {}
            }
        }
        if scenario.proves.is_empty() {
            bail!("a line \"# proves: ...\" is missing");
        }
        Ok(scenario)
    }

    /// Whether a person who says `wanted` means this one: `00-box`, or just `box`.
    #[must_use]
    pub fn is_called(&self, wanted: &str) -> bool {
        let bare = |name: &str| {
            name.trim_start_matches(|digit: char| digit.is_ascii_digit() || digit == '-').to_owned()
        };
        self.name == wanted || bare(&self.name) == wanted
    }
}

/// All scenarios below `folder`, in the order of their names.
pub fn all(folder: &Path) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("Reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sh"));
    paths.sort();
    paths.iter().map(|path| Scenario::read(path)).collect()
}

/// The scenarios of a suite on one kernel.
pub fn of_suite(folder: &Path, suite: &str, flavour: Flavour) -> Result<Vec<Scenario>> {
    let mut scenarios = all(folder)?;
    scenarios.retain(|scenario| scenario.suite == suite && scenario.kernels.contains(&flavour));
    Ok(scenarios)
}

/// The scenarios a person asked for, by name or by path; when none is named, those that the suite `lab` runs.
pub fn choose(folder: &Path, wanted: &[String], flavour: Flavour) -> Result<Vec<Scenario>> {
    if wanted.is_empty() {
        let mut scenarios = of_suite(folder, SUITE, flavour)?;
        scenarios.retain(|scenario| scenario.gates);
        return Ok(scenarios);
    }
    let known = all(folder)?;
    let mut chosen = Vec::new();
    for name in wanted {
        if Path::new(name).is_file() {
            chosen.push(Scenario::read(Path::new(name))?);
            continue;
        }
        let Some(found) = known.iter().find(|scenario| scenario.is_called(name)) else {
            let names: Vec<&str> = known.iter().map(|scenario| scenario.name.as_str()).collect();
            bail!("There is no scenario {name:?}; there are: {}", names.join(", "));
        };
        chosen.push(found.clone());
    }
    Ok(chosen)
}

/// Groups scenarios into boots: in order, as many to a boot as surely end within
/// `budget` seconds, those that want a boot of their own alone.
#[must_use]
pub fn boots(scenarios: Vec<Scenario>, budget: u64) -> Vec<Vec<Scenario>> {
    let mut boots: Vec<Vec<Scenario>> = Vec::new();
    let mut left = 0;
    for scenario in scenarios {
        match boots.last_mut() {
            Some(boot) if !scenario.own_boot && left >= scenario.timeout => {
                left = left.saturating_sub(scenario.timeout);
                boot.push(scenario);
            }
            _ => {
                left = if scenario.own_boot { 0 } else { budget.saturating_sub(scenario.timeout) };
                boots.push(vec![scenario]);
            }
        }
    }
    boots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(name: &str, timeout: u64, own_boot: bool) -> Scenario {
        let text = format!(
            "# proves: x\n# timeout: {timeout}\n# boot: {}\n",
            if own_boot { "own" } else { "shared" }
        );
        Scenario::parse(Path::new(name), &text).unwrap()
    }

    #[test]
    fn headers_are_read() {
        let text = "# proves: It works.\n# kernels: iommufd\n# timeout: 30\n# examples: one two\n. lib\n# boot: own\n";
        let scenario = Scenario::parse(Path::new("tests/lab/10-vf.sh"), text).unwrap();
        assert_eq!(
            (scenario.name.as_str(), scenario.proves.as_str(), scenario.timeout),
            ("10-vf", "It works.", 30)
        );
        assert_eq!(scenario.kernels, [Flavour::Iommufd]);
        assert_eq!(scenario.examples, ["one", "two"]);
        assert_eq!((scenario.suite.as_str(), scenario.image), ("lab", None));
        assert!(!scenario.own_boot, "the header ends at the first other line");
        assert!(scenario.is_called("vf") && scenario.is_called("10-vf") && !scenario.is_called("v"));
    }

    #[test]
    fn a_suite_and_an_image_are_named_in_the_header() {
        let text = "# proves: It boots.\n# suite: uefi\n# image: debian\n";
        let scenario = Scenario::parse(Path::new("a.sh"), text).unwrap();
        assert_eq!((scenario.suite.as_str(), scenario.image), ("uefi", Some(Installed::Disk)));
        assert!(Scenario::parse(Path::new("a.sh"), "# proves: x\n# image: bsd\n").is_err());
    }

    #[test]
    fn a_header_without_a_purpose_or_with_an_unknown_kernel_is_refused() {
        assert!(Scenario::parse(Path::new("a.sh"), "# timeout: 3\n").is_err());
        assert!(Scenario::parse(Path::new("a.sh"), "# proves: x\n# kernels: bsd\n").is_err());
    }

    #[test]
    fn boots_keep_to_their_budget() {
        let all = vec![
            scenario("a", 100, false),
            scenario("b", 100, false),
            scenario("c", 100, true),
            scenario("d", 10, false),
        ];
        let names: Vec<Vec<String>> =
            boots(all, 250).into_iter().map(|boot| boot.into_iter().map(|one| one.name).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d"]]);
    }
}
