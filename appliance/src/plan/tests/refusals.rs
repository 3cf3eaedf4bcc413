//! Each refusal as a person reads it, place, cause and what to do: all on one page, `refusals.md`. `UPDATE_PAGES=1` takes what
//! is said now for right.

use std::fmt::Write;

use vfio::in_use::Use;

use super::host::{at, hold, host, regroup, vf};
use super::{PF, VFIO_PCI, file, guest, plan_of};
use crate::config::Document;
use crate::host::HostState;

struct Page(String);

impl Page {
    /// Guest `a` has `rest` in it.
    fn said(&mut self, what: &str, host: &HostState, rest: &str) {
        self.said_of(what, host, &file(&guest("a", rest)));
    }

    /// Adds what is said of starting guest `a`.
    fn said_of(&mut self, what: &str, host: &HostState, document: &Document) {
        let refusals = plan_of(document, host, "a").unwrap_err();
        let place = |refusal: &crate::plan::Refusal| {
            document.at_path(&refusal.path, refusal.message.clone(), refusal.help.clone())
        };
        write!(self.0, "\n## {what}\n\n```\n").unwrap();
        for problem in refusals.iter().map(place) {
            assert_ne!(problem.line, 0, "{what}: a refusal has a place in the file");
            assert!(problem.help.is_some(), "{what}: a refusal says what to do");
            self.0.push_str(&problem.render());
        }
        self.0.push_str("```\n");
    }
}

/// The usual file, guest `a` with `rest` in it, and `from` replaced by `to`.
fn changed(rest: &str, from: &str, to: &str) -> Document {
    let mut document = file(&guest("a", rest));
    assert!(document.text.contains(from));
    document.text = document.text.replace(from, to);
    document
}

#[test]
fn refusals_are_what_the_page_says() {
    let mut page = Page("# What is refused, and how it is said\n".into());
    recognizing(&mut page);
    in_use(&mut page);
    groups(&mut page);
    virtual_functions(&mut page);
    pools(&mut page);
    the_box(&mut page);
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/appliance/src/plan/tests/refusals.md");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(kept, &page.0).unwrap();
    }
    let kept = std::fs::read_to_string(kept).unwrap();
    for (now, kept) in page.0.split("\n## ").zip(kept.split("\n## ")) {
        assert_eq!(now, kept);
    }
    assert_eq!(page.0, kept);
}

fn recognizing(page: &mut Page) {
    page.said("A device that is not there", &host(0), "pci: {x: {device: absent}}");
    let other = changed("pci: {x: {device: disk}}", "\"02:00.0\"}", "\"02:00.0\", id: \"8086:0a54\"}");
    page.said_of("Another card at the place", &host(0), &other);
    let several =
        changed("pci: {x: {device: disk}}", "{address: \"02:00.0\"}", "{subsystem-id: \"8086:0001\"}");
    page.said_of("A match that fits several", &host(0), &several);
    let bridge = changed("pci: {x: {device: disk}}", "\"02:00.0\"", "\"00:01.0\"");
    page.said_of("A bridge", &host(0), &bridge);
}

fn in_use(page: &mut Page) {
    page.said("A disk that is mounted", &host(0), "pci: {x: {device: disk}}");
    page.said("The way out of the box", &host(0), "pci: {x: {device: uplink}}");
    let mut taken = host(0);
    hold(&mut taken, at("03:00.0"), "games");
    page.said("A device that another guest has", &taken, "pci: {x: {device: gpu}}");
    let mut document = changed("pci: {x: {device: lan}}", "lan: {num-vfs: 4", "uplink: {num-vfs: 4");
    document.text = document.text.replace("pf: [lan]", "pf: [uplink]");
    page.said_of("A card with VFs, whole", &host(2), &document);
}

fn groups(page: &mut Page) {
    let mut shared = host(0);
    for address in ["00:01.0", "02:00.0"] {
        shared.inventory.functions.get_mut(&at(address)).unwrap().iommu_group = Some(4);
    }
    regroup(&mut shared);
    page.said("A group whose others stay with the host", &shared, "pci: {x: {device: gpu-alone}}");

    let mut parted = host(0);
    parted.inventory.functions.get_mut(&at("03:00.1")).unwrap().driver = Some(VFIO_PCI.into());
    regroup(&mut parted);
    hold(&mut parted, at("03:00.1"), "music");
    page.said("A group of which another guest has a part", &parted, "pci: {x: {device: gpu-alone}}");

    let mut without_acs = host(4);
    for index in [1, 2] {
        let function = without_acs.inventory.functions.get_mut(&vf(index)).unwrap();
        (function.iommu_group, function.driver) = (Some(2), Some("igbvf".into()));
    }
    regroup(&mut without_acs);
    page.said("VFs in the group of their PF", &without_acs, "nics: {m: {pf: lan, vf: 1}}");
}

fn virtual_functions(page: &mut Page) {
    let mut taken = host(4);
    hold(&mut taken, vf(0), "b");
    page.said("A VF that another guest has", &taken, "nics: {n: {pf: lan, vf: 0}}");
    page.said("A VF twice", &host(4), "nics: {m: {pf: lan, vf: 0}, n: {pf: lan, vf: 0}}");
    let one = format!("devices:\n  one: {{match: {{address: \"{}\"}}}}\n", vf(1));
    let both_ways = "pci: {v: {device: one}}, nics: {n: {pf: lan, vf: 1}}";
    page.said_of("A VF twice, once by its address", &host(4), &changed(both_ways, "devices:\n", &one));
    let resized = changed(both_ways, "devices:\n", &one);
    page.said_of("Another number of VFs, and one given by its address", &host(2), &resized);

    let mut used = host(2);
    used.uses.insert(vf(0), vec![Use::DefaultRoute { interface: "eth3".into() }]);
    page.said("Another number of VFs while the host uses one", &used, "nics: {n: {pool: vfs}}");
    hold(&mut used, vf(0), "b");
    page.said("Another number of VFs while a guest has one", &used, "nics: {n: {pool: vfs}}");
    let many = changed("nics: {n: {pool: vfs}}", "num-vfs: 4", "num-vfs: 8");
    page.said_of("More VFs than the card has", &host(0), &many);
}

fn pools(page: &mut Page) {
    let mut full = host(4);
    hold(&mut full, vf(1), "b");
    hold(&mut full, vf(2), "c");
    full.uses.insert(vf(3), vec![Use::Port { interface: "eth4".into(), controller: "br0".into() }]);
    page.said("A pool with none left", &full, "nics: {n: {pool: vfs}}");
    let other = "vms:\n  b: {memory: 1GiB, boot: {kernel: /k}, nics: {x: {pf: lan, vf: 3}}}\n";
    let mut named = changed("nics: {n: {pool: vfs}}", "vms:\n", other);
    named.text = named.text.replace("vf-range: 1-3", "vf-range: 3-7");
    page.said_of("A pool of which nics have all by name", &host(4), &named);

    let mut absent = host(4);
    absent.inventory.functions.remove(&at(PF));
    page.said("A PF that is not there, for two nics", &absent, "nics: {m: {pool: vfs}, n: {pool: vfs}}");
    let mut none = host(0);
    none.inventory.functions.get_mut(&at(PF)).unwrap().sriov = None;
    page.said("A card without VFs", &none, "nics: {n: {pool: vfs}}");
    let mut lent = host(0);
    let pf = lent.inventory.functions.get_mut(&at(PF)).unwrap();
    (pf.driver, pf.interfaces) = (Some(VFIO_PCI.into()), Vec::new());
    page.said("A PF that its own driver does not have", &lent, "nics: {n: {pool: vfs}}");
    hold(&mut lent, at(PF), "b");
    page.said("A PF that a guest has", &lent, "nics: {n: {pool: vfs}}");
}

fn the_box(page: &mut Page) {
    let mut poor = host(4);
    poor.inventory.iommu.interrupt_remapping = Some(false);
    page.said("No interrupt remapping", &poor, "nics: {n: {pool: vfs}}");
    poor.inventory.iommu.units.clear();
    page.said("No IOMMU", &poor, "nics: {n: {pool: vfs}}");
    poor.memory_available = 512 << 20;
    page.said("Several at once", &poor, "nics: {n: {pf: lan, vf: 0}}, pci: {x: {device: disk}}");
}

/// Where the functions of a group go to one guest, the group is no trouble.
#[test]
fn vfs_of_one_group_may_go_to_one_guest() {
    let mut host = host(4);
    for index in [1, 2] {
        let function = host.inventory.functions.get_mut(&vf(index)).unwrap();
        (function.iommu_group, function.driver) = (Some(30), Some("igbvf".into()));
    }
    regroup(&mut host);
    let both = file(&guest("a", "nics: {m: {pf: lan, vf: 1}, n: {pf: lan, vf: 2}}"));
    assert!(plan_of(&both, &host, "a").is_ok());
    let one = file(&guest("a", "nics: {m: {pf: lan, vf: 1}}"));
    assert!(plan_of(&one, &host, "a").is_err());
}
