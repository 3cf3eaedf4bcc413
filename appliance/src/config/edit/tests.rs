use super::*;
use crate::config::load_all;

fn document(text: &str) -> Document {
    Document { name: "box.yaml".into(), text: text.into() }
}

const TEXT: &str = "# The box.
version: 1

devices:
  lan-pf: {match: {permanent-mac: \"b4:96:91:3e:61:34\"}}   # the card

sriov:
  lan-pf:
    num-vfs: 4   # one is a spare

networks:
  br0: {type: bridge}
  storage: {type: vlan, base-iface: eno2, id: 30}

pools:
  lan-vfs: {pf: [lan-pf]}

vms:
  # What all go through.
  firewall:
    cpus: 2       # enough
    memory: {size: 2GiB, prefault: true}
    boot: {kernel: /boot/vmlinuz, cmdline: \"console=ttyS0 quiet\"}
    nics:
      lan: {network: br0}  # inside
      wan: {pf: lan-pf, vf: 1}
  # The other one.
  web:
    memory: 1GiB
    boot:
      kernel: /boot/vmlinuz
";

/// What was added and taken out, line by line.
fn difference(new: &str) -> Vec<String> {
    let diff = similar::TextDiff::from_lines(TEXT, new);
    let changed = diff.iter_all_changes().filter(|change| change.tag() != similar::ChangeTag::Equal);
    changed.map(|change| format!("{}{}", change.tag(), change.value().trim_end())).collect()
}

fn valid(text: &str) {
    let (config, problems) = load_all(&document(text));
    assert!(config.is_some() && problems.is_empty(), "{problems:?}\n{text}");
}

#[test]
fn a_guest_is_read_as_a_form_has_it_and_nothing_changes_by_that() {
    let defined = document(TEXT).defined("firewall");
    let guest = defined.guest.unwrap();
    assert_eq!((guest.vcpus, guest.memory.as_str(), guest.uefi), (2, "2GiB", false));
    assert_eq!(guest.cmdline, "console=ttyS0 quiet");
    assert_eq!(guest.nics[0].network, "br0");
    assert_eq!(defined.networks, ["br0"]);
    assert_eq!(defined.pools, ["lan-vfs"]);
    assert_eq!(defined.guests, ["firewall", "web"]);
    assert_eq!(document(TEXT).with_guest("firewall", &guest).as_deref(), Some(TEXT));
    assert_eq!(document(TEXT).defined("none").guest, None);
}

#[test]
fn what_the_form_changes_changes_and_comments_stay() {
    let mut guest = document(TEXT).defined("firewall").guest.unwrap();
    guest.vcpus = 4;
    guest.memory = "3GiB".into();
    guest.autostart = true;
    guest.initrd = "/boot/initrd.img".into();
    guest.nics[0].network = String::new();
    guest.nics[0].pool = "lan-vfs".into();
    guest.nics.push(DefinedNic { name: "dmz".into(), network: "br0".into(), pool: String::new() });
    guest.disks.push(DefinedDisk {
        name: "root".into(),
        path: "/srv/a b.qcow2".into(),
        qcow2: true,
        cdrom: false,
    });
    let text = document(TEXT).with_guest("firewall", &guest).unwrap();
    valid(&text);
    let expected = [
        "-    cpus: 2       # enough",
        "-    memory: {size: 2GiB, prefault: true}",
        "-    boot: {kernel: /boot/vmlinuz, cmdline: \"console=ttyS0 quiet\"}",
        "+    cpus: 4       # enough",
        "+    memory: {size: 3GiB, prefault: true}",
        "+    boot: {kernel: /boot/vmlinuz, cmdline: \"console=ttyS0 quiet\", initrd: /boot/initrd.img}",
        "-      lan: {network: br0}  # inside",
        "+      lan: {pool: lan-vfs}  # inside",
        "+      dmz: {network: br0}",
        "+    autostart: true",
        "+    disks:",
        "+      root: {path: \"/srv/a b.qcow2\", format: qcow2}",
    ];
    assert_eq!(difference(&text), expected, "{text}");
    assert_eq!(document(&text).defined("firewall").guest, Some(guest));
}

#[test]
fn a_guest_comes_and_goes() {
    let guest = Definition {
        autostart: true,
        vcpus: 1,
        memory: "512MiB".into(),
        uefi: true,
        disks: vec![DefinedDisk { name: "cd".into(), path: "/srv/x.iso".into(), qcow2: false, cdrom: true }],
        ..Definition::default()
    };
    for before in [
        TEXT,
        "version: 1\n",
        "version: 1\nvms:\n",
        "version: 1\nvms: {}\n",
        "version: 1",
        "version: 1\r\nvms:   # none yet\r\n",
    ] {
        let text = document(before).with_guest("new", &guest).unwrap_or_else(|| panic!("{before}"));
        valid(&text);
        assert_eq!(document(&text).defined("new").guest.as_ref(), Some(&guest), "{text}");
        let gone = document(&text).without_guest("new").unwrap();
        assert_eq!(document(&gone).defined("new").guest, None);
    }
    let added = document(TEXT).with_guest("new", &guest).unwrap();
    assert!(added.starts_with(TEXT), "{added}");
    assert_eq!(document(&added).without_guest("new").as_deref(), Some(TEXT));
}

#[test]
fn a_device_is_named_once_and_given_once() {
    let device = Named {
        name: "gpu".into(),
        matches: vec![("path", "00:01.0/00.0".into()), ("id", "10de:2204".into())],
        whole_group: true,
    };
    let text = document(TEXT).with_device("web", &device).unwrap();
    valid(&text);
    let expected = [
        "+  gpu:",
        "+    match: {path: \"00:01.0/00.0\", id: \"10de:2204\"}",
        "+    group: all-endpoints",
        "+    pci:",
        "+      gpu: {device: gpu}",
    ];
    assert_eq!(difference(&text), expected, "{text}");
    assert_eq!(document(&text).with_device("web", &device).as_deref(), Some(text.as_str()));
    assert_eq!(document(TEXT).with_device("none", &device), None);
}

fn pf(name: &str) -> Named {
    Named { name: name.into(), matches: vec![("address", "0000:01:00.1".into())], whole_group: false }
}

#[test]
fn a_vf_becomes_a_network_card() {
    let text = document(TEXT).with_vf("web", &pf("lan-pf"), 2, 4).unwrap();
    valid(&text);
    assert_eq!(difference(&text), ["+    nics:", "+      lan-pf-2: {pf: lan-pf, vf: 2}"]);
    assert_eq!(document(&text).with_vf("web", &pf("lan-pf"), 2, 4), Some(text), "it has it");
    assert_eq!(
        document(TEXT).with_vf("firewall", &pf("lan-pf"), 1, 4).as_deref(),
        Some(TEXT),
        "by another name"
    );
    let text = document(TEXT).with_vf("web", &pf("other"), 0, 2).unwrap();
    valid(&text);
    let added = difference(&text);
    assert!(added.iter().any(|line| line.contains("num-vfs: 2")), "{added:?}");
    assert_eq!(document(TEXT).with_vf("none", &pf("lan-pf"), 0, 4), None);
}

#[test]
fn the_number_of_vfs_is_changed_where_it_is_or_added() {
    let text = document(TEXT).with_vfs(&pf("lan-pf"), 8).unwrap();
    assert_eq!(
        difference(&text),
        ["-    num-vfs: 4   # one is a spare", "+    num-vfs: 8   # one is a spare"]
    );
    let text = document(TEXT).with_vfs(&pf("other"), 2).unwrap();
    valid(&text);
    assert_eq!(document(&text).with_vfs(&pf("other"), 2), Some(text));
    let alias =
        "version: 1\nsriov: {a: {total-vfs: 3}}\ndevices: {a: {match: {address: \"0000:01:00.1\"}}}\n";
    let text = document(alias).with_vfs(&pf("a"), 5).unwrap();
    assert_eq!(text, alias.replace("3}", "5}"));
}

#[test]
fn what_is_not_understood_is_not_changed() {
    let guest = Definition { vcpus: 3, memory: "1GiB".into(), uefi: true, ..Definition::default() };
    for text in [
        "version: 1\nvms: &all {a: {memory: 1GiB, cpus: 2, boot: {firmware: uefi}}}\nx: *all\n",
        "- a\n",
        "version: 1\nvms: [a]\n",
        "{",
    ] {
        let found = document(text).with_guest("a", &guest);
        assert!(found.is_none_or(|found| serde_yaml::from_str::<Value>(&found).is_ok()), "{text}");
    }
    assert_eq!(document("- a\n").with_guest("a", &guest), None);
    assert_eq!(document("{").with_guest("a", &guest), None);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn definition() -> impl Strategy<Value = Definition> {
        let word = "[a-z][a-z0-9-]{0,6}";
        let text = "[ -~]{0,12}";
        (
            any::<bool>(),
            1..9_u32,
            text,
            any::<bool>(),
            text,
            text,
            proptest::collection::btree_set(word, 0..3),
        )
            .prop_map(|(autostart, vcpus, memory, uefi, kernel, cmdline, names)| Definition {
                autostart,
                vcpus,
                memory,
                uefi,
                kernel: if uefi { String::new() } else { kernel.clone() },
                initrd: String::new(),
                cmdline: if uefi { String::new() } else { cmdline },
                nics: Vec::new(),
                disks: names
                    .into_iter()
                    .map(|name| DefinedDisk { name, path: kernel.clone(), qcow2: uefi, cdrom: autostart })
                    .collect(),
            })
    }

    proptest! {
        #[test]
        fn a_guest_reads_back_as_it_was_put(guest in definition(), name in "[a-z][a-z0-9-]{0,9}") {
            let text = document(TEXT).with_guest(&name, &guest);
            if let Some(text) = text {
                prop_assert_eq!(document(&text).defined(&name).guest, Some(guest));
            } else {
                prop_assert!(false, "not understood");
            }
        }

        #[test]
        fn no_text_can_panic(text in "(vms:|a: |b: |cpus: 1|[{}\\[\\],'\"#\\\\&| \nxä]){0,30}") {
            let guest = Definition { vcpus: 2, memory: "1GiB".into(), ..Definition::default() };
            let document = document(&text);
            document.with_guest("a", &guest);
            document.defined("a");
            document.without_guest("b");
        }
    }
}
