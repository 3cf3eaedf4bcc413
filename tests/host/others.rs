//! What the program reports is what lspci, ip, bridge and nft say.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::namespace::{alone, ip};
use crate::visit::Visited;

fn json_of(program: &str, arguments: &str) -> Value {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{program} {arguments}: {error}"))
}

/// The number in the last brackets of `Intel Corporation [8086]`, and what stands before it.
fn bracketed(text: &str) -> (String, u64) {
    let (words, number) = text.trim_end_matches(']').rsplit_once('[').unwrap();
    (words.trim().to_owned(), u64::from_str_radix(number, 16).unwrap())
}

/// Records of `lspci -vmm`: lines `Key:<tab>value`.
fn by_lspci() -> BTreeMap<String, BTreeMap<String, String>> {
    let output = Command::new("lspci").args(["-vmm", "-k", "-nn", "-D"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.split("\n\n").filter(|record| !record.trim().is_empty()).map(|record| {
        let pairs = record.lines().filter_map(|line| line.split_once(":\t"));
        let record: BTreeMap<String, String> =
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        (record["Slot"].clone(), record)
    });
    records.collect()
}

#[test]
fn every_function_is_as_lspci_says() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_throughway")).args(["devices", "--all", "--json"]).output().unwrap();
    let ours: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let theirs = by_lspci();
    let addresses: Vec<&str> = ours.iter().map(|function| function["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, theirs.keys().map(String::as_str).collect::<Vec<_>>());
    for function in &ours {
        let record = &theirs[function["address"].as_str().unwrap()];
        let number = |key: &str| record.get(key).map(|text| bracketed(text));
        let (class, number_of_class) = number("Class").unwrap();
        let interface = record.get("ProgIf").map_or(0, |text| u64::from_str_radix(&text[..2], 16).unwrap());
        assert_eq!(function["class"], number_of_class << 8 | interface, "{record:?}");
        if let Some(kind) = function["kind"].as_str() {
            assert_eq!(kind, class, "{record:?}");
        } else {
            assert!(class.starts_with("Unassigned") || class.starts_with("Class"), "{record:?}");
        }
        let (vendor, device) = (number("Vendor").unwrap(), number("Device").unwrap());
        assert_eq!((&function["vendor"], &function["device"]), (&vendor.1.into(), &device.1.into()));
        let named = vendor.0 != "Vendor" && device.0 != "Device";
        if named {
            assert_eq!(function["name"], format!("{} {}", vendor.0, device.0));
        }
        for (key, field) in [("SVendor", "subsystem-vendor"), ("SDevice", "subsystem-device")] {
            assert_eq!(function[field], number(key).map_or(0, |(_, number)| number), "{key}: {record:?}");
        }
        let revision = record.get("Rev").map_or(0, |text| u64::from_str_radix(text, 16).unwrap());
        assert_eq!(function["revision"], revision, "{record:?}");
        assert_eq!(function["driver"].as_str(), record.get("Driver").map(String::as_str), "{record:?}");
        let node = |key: &str| record.get(key).and_then(|text| text.parse::<u64>().ok());
        assert_eq!(function["iommu-group"].as_u64(), node("IOMMUGroup"), "{record:?}");
        assert_eq!(function["numa-node"].as_u64(), node("NUMANode"), "{record:?}");
    }
}

/// What `throughway plan --json` has of links as they are.
fn links_of(plan: &Value) -> BTreeMap<String, Value> {
    let links = plan["steps"].as_array().unwrap().iter().filter_map(|planned| {
        let link = &planned["step"]["link"];
        Some((link["name"].as_str()?.to_owned(), link["from"].clone()))
    });
    links.collect()
}

#[test]
fn links_and_rules_are_as_ip_bridge_and_nft_say() {
    alone("others::links_and_rules_are_as_ip_bridge_and_nft_say", || {
        let (visited, _administrator) = Visited::new();
        for name in ["a", "c"] {
            ip(&format!("link add {name}0 type veth peer name {name}1"));
            ip(&format!("link set {name}0 up mtu 1450"));
        }
        let text = "version: 1
networks:
  br0:
    {type: bridge, mtu: 1400, stp: {enabled: true}, ageing-time: 30, ports: {a0: {}}, addresses: [10.1.0.1/24, 'fd00:1::1/64'],
     gateway: 10.1.0.254}
  up0: {type: macvtap, base-iface: c0, mode: vepa}
  nat0: {type: nat, addresses: [10.77.0.1/24], isolated: true}
";
        let file = visited.file("box.yaml", text);
        let (code, said) = visited.run(&format!("apply {}", file.display()));
        assert_eq!(code, 0, "{said}");
        // Another file, so that the plan says of each link what it is now.
        let other = text
            .replace("mtu: 1400", "mtu: 1300")
            .replace("vepa", "private")
            .replace("{a0: {}}", "{a0: {}, a1: {}}");
        let other = visited
            .file("other.yaml", &other.replace("addresses: [10.77.0.1/24]", "addresses: [10.77.0.1/25]"));
        let (code, plan) = visited.run(&format!("plan --json {}", other.display()));
        assert_eq!(code, 2, "{plan}");
        let links = links_of(&serde_json::from_str(&plan).unwrap());
        assert_eq!(links.keys().collect::<Vec<_>>(), ["a0", "a1", "br0", "nat0", "up0"]);
        for (name, ours) in &links {
            let theirs = json_of("ip", &format!("-j -d address show dev {name}"))[0].clone();
            let flag = |flag: &str| theirs["flags"].as_array().unwrap().iter().any(|have| have == flag);
            assert_eq!(ours["mtu"], theirs["mtu"], "{name}");
            assert_eq!(ours["up"], flag("UP"), "{name}");
            assert_eq!(ours["mac-address"], theirs["address"], "{name}");
            assert_eq!(ours["controller"], theirs["master"], "{name}");
            let wide = |found: &&Value| found["scope"] == "global";
            let found = theirs["addr_info"].as_array().unwrap().iter().filter(wide);
            let mut found: Vec<String> = found
                .map(|found| format!("{}/{}", found["local"].as_str().unwrap(), found["prefixlen"]))
                .collect();
            let mut own: Vec<&str> = ours["addresses"]
                .as_array()
                .unwrap()
                .iter()
                .map(|address| address.as_str().unwrap())
                .collect();
            found.sort();
            own.sort_unstable();
            assert_eq!(own, found, "{name}");
            let routes = json_of("ip", &format!("-j route show default dev {name}"));
            let gateways: Vec<Value> =
                routes.as_array().unwrap().iter().map(|route| route["gateway"].clone()).collect();
            assert_eq!(ours["gateways"], Value::from(gateways), "{name}");
            let (kind, data) = (&theirs["linkinfo"]["info_kind"], &theirs["linkinfo"]["info_data"]);
            match name.as_str() {
                "br0" | "nat0" => {
                    let bridge = &ours["kind"]["bridge"];
                    assert_eq!(kind, "bridge");
                    assert_eq!(bridge["stp"], data["stp_state"] == 1, "{name}");
                    assert_eq!(
                        bridge["ageing-time"].as_u64().unwrap() * 100,
                        data["ageing_time"].as_u64().unwrap()
                    );
                    assert_eq!(bridge["vlan-filtering"], data["vlan_filtering"] == 1, "{name}");
                }
                "up0" => {
                    assert_eq!((kind, &theirs["link"]), (&"macvtap".into(), &"c0".into()));
                    assert_eq!(ours["kind"]["macvtap"]["mode"], data["mode"]);
                    assert_eq!(ours["kind"]["macvtap"]["base"], theirs["link"]);
                }
                _ => assert_eq!(ours["kind"]["foreign"], *kind),
            }
        }
        let ports = json_of("bridge", "-j link show");
        let ports: Vec<(&str, &str)> = ports
            .as_array()
            .unwrap()
            .iter()
            .map(|port| (port["ifname"].as_str().unwrap(), port["master"].as_str().unwrap_or_default()))
            .collect();
        assert_eq!(ports, [("a0", "br0")]);
        let ruleset = json_of("nft", "-j list ruleset").to_string();
        assert!(
            ruleset.contains("masquerade") && ruleset.contains("\"10.77.0.0\"") && ruleset.contains("nat0"),
            "{ruleset}"
        );
        let none = visited.file("none.yaml", "version: 1\n");
        ip("route del default");
        let (code, said) = visited.run(&format!("apply {}", none.display()));
        assert_eq!(code, 0, "{said}");
        assert!(!json_of("nft", "-j list ruleset").to_string().contains("masquerade"));
    });
}
