//! Files with problems, and what is said of them.

use super::*;

fn problems(text: &str) -> Vec<String> {
    let document = Document { name: "box.yaml".into(), text: text.into() };
    let line = |d: &Diagnostic| {
        format!(
            "{}:{}: {}{}",
            d.line,
            d.column,
            d.message,
            d.help.as_deref().map(|h| format!(" ({h})")).unwrap_or_default()
        )
    };
    load(&document).err().unwrap_or_default().iter().map(line).collect()
}

const GOOD: &str = "version: 1
devices:
  lan: {match: {address: \"0000:01:00.0\"}}
sriov:
  lan: {num-vfs: 2, vfs: [{id: 0, mac-address: \"02:00:00:00:01:00\"}]}
pools:
  vfs: {pf: [lan], vf-range: 0-1}
vms:
  a:
    cpus: {count: 4, threads: 2}
    memory: {size: 1GiB, hugepages: 2MiB}
    boot: {kernel: /boot/vmlinuz}
    nics: {wan: {pool: vfs, vlan-id: 100}}
";

#[test]
fn a_good_file_has_none() {
    assert_eq!(problems(GOOD), Vec::<String>::new());
}

#[test]
fn all_problems_come_at_once_each_at_its_place() {
    let text = "version: 1
vms:
  a:
    cpu: 2
    memory: 8GB
    boot: {kernel: /boot/vmlinuz}
    nics:
      wan: {pool: nowhere, mac-adress: \"02:00:00:00:01:00\"}
  b:
    cpus: many
    memory: 1GiB
    boot: {kernel: /k}
    boot: {kernel: /l}
";
    assert_eq!(
        problems(text),
        [
            "4:5: Unknown key `cpu` (did you mean `cpus`?)",
            "5:13: Write a size, such as 8GiB, or {size: 8GiB, hugepages: 1GiB}",
            "8:28: Unknown key `mac-adress` (did you mean `mac-address`?)",
            "10:11: Invalid type: string \"many\", expected a number of processors, such as 4, or {count: 4, threads: 2}",
            "13:5: The key `boot` is there twice (only one of the two can hold; take the other one out)",
        ]
    );
}

#[test]
fn a_key_of_a_nic_that_nobody_knows_is_found_where_all_else_is_right() {
    let with = |nic: &str| {
        format!(
            "version: 1\nnetworks: {{br0: {{type: bridge, vlan-filtering: true}}}}\nvms:\n  a: {{memory: 1GiB, boot: {{kernel: /k}}, nics: {{lan: {{{nic}}}}}}}\n"
        )
    };
    let problems = |nic: &str| problems(&with(nic));
    let nothing = Vec::<String>::new();
    for known in [
        "network: br0",
        "network: br0, queues: 1, mac-address: \"02:00:00:00:01:00\"",
        "network: br0, hwaddr: \"02:00:00:00:01:00\"",
        "network: br0, pool: ~",
    ] {
        assert_eq!(problems(known), nothing, "{known}");
    }
    assert_eq!(problems("network: br0, queue: 1"), ["4:68: Unknown key `queue` (did you mean `queues`?)"]);
    let below = problems("network: br0, vlan: {mode: access, tag: 7, tags: 7}");
    assert_eq!(below.len(), 1, "{below:?}");
    assert!(below[0].contains("Unknown key `tags`"), "{below:?}");
    let read = load(&Document {
        name: "box.yaml".into(),
        text: with("network: br0, hwaddr: \"02:00:00:00:01:00\""),
    });
    let lan = &read.unwrap().vms["a"].nics["lan"];
    assert_eq!(lan.attributes.mac_address, "02:00:00:00:01:00".parse().ok());
}

#[test]
fn names_must_be_defined_and_numbers_must_fit() {
    let text = GOOD
        .replace("pool: vfs", "pool: vf")
        .replace("id: 0", "id: 2")
        .replace("count: 4", "count: 3")
        .replace("vlan-id: 100", "vlan-id: 5000");
    assert_eq!(
        problems(&text),
        [
            "5:32: VF 2 is beyond num-vfs 2: the last one is 1",
            "10:11: 3 vCPUs cannot be 1 sockets of cores with 2 threads (threads is 1 or 2, and count a multiple of sockets x threads)",
            "13:24: `vf` is not defined under `pools` (did you mean `vfs`?)",
            "13:37: A VLAN is 1 to 4094, or 0 for none",
        ]
    );
}

#[test]
fn what_is_no_yaml_is_one_problem() {
    for text in ["vms: [", "a: b: c", "\tversion: 1", "version: 1\n---\nversion: 1", "x: &a [*a]", "{{{{"] {
        assert_eq!(problems(text).len(), 1, "{text:?}: {:?}", problems(text));
    }
}

#[test]
fn an_empty_file_lacks_its_version() {
    assert_eq!(
        problems("# nothing\n"),
        ["1:1: The key `version` is missing (begin the file with `version: 1`)"]
    );
}

#[test]
fn what_is_planned_is_refused_and_not_passed_over() {
    let text = "version: 1\nvms: {a: {memory: 1GiB, boot: {kernel: /k}, serial: none}}\n";
    assert!(problems(text)[0].contains("`serial` is not built yet"));
}

#[test]
fn other_tools_spellings_are_read() {
    let text = GOOD.replace("num-vfs", "total-vfs").replace("mac-address", "hwaddr");
    assert_eq!(problems(&text), Vec::<String>::new());
}

#[test]
fn deep_nesting_and_odd_bytes_do_not_hurt() {
    assert_eq!(problems(&"[".repeat(5000)).len(), 1);
    let deep = (0..60).fold(String::from("1"), |inner, _| format!("{{a: {inner}}}"));
    assert_eq!(problems(&deep).len(), 1);
}

#[test]
fn the_types_refuse_unknown_keys_wherever_the_schema_is_not_asked() {
    let schema = schemars::schema_for!(Config).to_value();
    let definitions = schema["$defs"].as_object().unwrap().iter();
    let all = definitions.map(|(name, definition)| (name.as_str(), definition)).chain([("Config", &schema)]);
    let open: Vec<_> = all
        .filter(|(_, definition)| definition.get("properties").is_some())
        .filter(|(_, definition)| definition.get("additionalProperties") != Some(&false.into()))
        .map(|(name, _)| name)
        .collect();
    // `VfAttributes` comes in these two only, and as the defaults of an `Sriov`.
    assert_eq!(open, ["Nic", "Vf"]);
    assert_eq!(
        problems("version: 1\nvms:\n  a: {memory: {size: 1GiB, prefalt: true}, boot: {kernel: /k}}\n"),
        ["3:28: Unknown key `prefalt` (did you mean `prefault`?)"]
    );
}

proptest::proptest! {
    #[test]
    fn no_text_can_panic(text in "[-a-z0-9:{}\\[\\]\",&*!#|> \n\t]{0,200}") {
        problems(&text);
    }
}

#[test]
fn a_guest_starts_with_a_kernel_or_with_firmware() {
    let boot = |boot: &str| {
        let text = format!("{}    pci: {{}}\n", GOOD.replace("{kernel: /boot/vmlinuz}", boot));
        problems(&text)
            .iter()
            .map(|problem| problem.split_once(": ").unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    for good in
        ["{firmware: uefi}", "{firmware: uefi, order: [wan]}", "{firmware: {code: /c.fd, vars: v.fd}}"]
    {
        assert_eq!(boot(good), Vec::<String>::new(), "{good}");
    }
    let either = "(write either `kernel: PATH` or `firmware: uefi`)";
    for (bad, expected) in [
        ("{}", format!("This names nothing to start {either}")),
        (
            "{firmware: uefi, kernel: /k}",
            format!("A guest starts with a kernel or with firmware, not both {either}"),
        ),
        ("{firmware: uefi, initrd: /i}", format!("Only a kernel has an initial RAM disk {either}")),
        ("{firmware: uefi, cmdline: quiet}", format!("Only a kernel has a command line {either}")),
        ("{firmware: bios}", "Write uefi, or {code: PATH, vars: PATH}".into()),
        ("{firmware: {code: /c.fd}}", "Write uefi, or {code: PATH, vars: PATH}".into()),
        (
            "{kernel: /k, order: [wan]}",
            "Only firmware has a boot order, and this guest starts with a kernel".into(),
        ),
        ("{firmware: uefi, order: [wan, wan]}", "`wan` is there twice".into()),
        (
            "{firmware: uefi, order: [lan]}",
            "This guest has no device `lan` (give it one of that name, under `vms.a.disks`, `.nics` or `.pci`)"
                .into(),
        ),
    ] {
        assert_eq!(boot(bad), [expected], "{bad}");
    }
}

#[test]
fn an_image_is_one_guests_unless_it_is_only_read() {
    let disks = |first: &str, second: &str| {
        let boot = "boot: {firmware: uefi}";
        problems(&format!(
            "version: 1\nvms:\n  a: {{memory: 1GiB, {boot}, disks: {{x: {{path: i.raw{first}}}}}}}\n  b: {{memory: 1GiB, {boot}, \
             disks: {{y: {{path: i.raw{second}}}}}}}\n"
        ))
        .into_iter()
        .map(|problem| problem.split_once(": ").unwrap().1.to_owned())
        .collect::<Vec<_>>()
    };
    let twice = "i.raw is a disk already, as vms.a.disks.x (give each an image of its own, or say `read-only: true` for both)";
    assert_eq!(disks("", ""), [twice]);
    assert_eq!(disks(", read-only: true", ""), [twice]);
    assert_eq!(disks(", read-only: true", ", device: cdrom"), Vec::<String>::new());
    assert_eq!(disks(", device: cdrom", ", device: cdrom, queues: 1"), ["A CD drive has one queue"]);
}

#[test]
fn devices_have_slots_and_functions_names_of_their_own() {
    let text = "version: 1
devices: {gpu: {match: {address: '0000:65:00.0'}}, card: {match: {address: '0000:66:00.0'}}}
sriov: {card: {num-vfs: 2}}
vms:
  a: {memory: 1GiB, boot: {kernel: /k}, rng: true, hotplug-ports: 29}
  b: {memory: 1GiB, boot: {kernel: /k}, rng: true, vsock: {cid: 3}, hotplug-ports: 29}
  c: {memory: 1GiB, boot: {kernel: /k}, nics: {wan: {pf: card, vf: 0}}, pci: {wan: {device: gpu}}}
";
    assert_eq!(
        problems(text),
        [
            "6:84: A guest has 30 slots, too few for 2 devices and 29 empty ones",
            "7:84: `wan` is a VF of this guest already, as vms.c.nics.wan (give one of them another name)",
        ]
    );
}

#[test]
fn sockets_are_numbered_once_and_not_as_the_host() {
    let text = "version: 1
vms:
  a: {memory: 1GiB, boot: {kernel: /k}, vsock: {cid: 2}}
  b: {memory: 1GiB, boot: {kernel: /k}, vsock: {cid: 3}, console: virtio, watchdog: none, on-panic: pause}
  c: {memory: 1GiB, boot: {kernel: /k}, vsock: {cid: 3}}
";
    assert_eq!(
        problems(text),
        [
            "3:54: A guest cannot have the vsock CID 2 (0 to 2 are the host's; take a number from 3 on)",
            "5:54: The vsock CID 3 is that of guest `b` already",
        ]
    );
}

#[test]
fn memory_is_of_one_kind_of_page_and_on_one_node_or_near() {
    let text = "version: 1
vms:
  a: {memory: {size: 1GiB, numa: auto, transparent-hugepages: true}, boot: {kernel: /k}}
  b: {memory: {size: 1GiB, numa: 1, hugepages: 2MiB, transparent-hugepages: true}, boot: {kernel: /k}}
";
    assert_eq!(
        problems(text),
        ["4:77: Memory is of `hugepages`, or of pages that may become huge: not both (take one of them out)"]
    );
}

#[test]
fn guests_that_the_daemon_starts_have_an_order() {
    let text = "version: 1
vms:
  a: {memory: 1GiB, boot: {kernel: /k}, autostart: true, restart: never, depends-on: [b, b, nobody]}
  b: {memory: 1GiB, boot: {kernel: /k}, restart: sometimes, start-delay: 5}
";
    assert_eq!(
        problems(text),
        [
            "4:50: Unknown value `sometimes`, expected one of `never`, `no`, `on-failure`, `always`",
            "4:74: Invalid type: integer `5`, expected text",
        ]
    );
    let text = text.replace("sometimes", "always").replace(": 5}", ": 5s, depends-on: [c]}");
    let text = format!("{text}  c: {{memory: 1GiB, boot: {{kernel: /k}}, depends-on: [a]}}\n");
    assert_eq!(
        problems(&text),
        [
            "3:87: These guests wait for each other: `a` -> `b` -> `c` -> `a` (take one of them out)",
            "3:90: `b` is there twice",
            "3:93: `nobody` is not defined under `vms` (define it under `vms:`)",
        ]
    );
}
