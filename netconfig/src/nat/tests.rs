use super::*;

fn nat(addresses: &[&str], dhcp: Option<(&str, &str)>) -> Nat {
    Nat {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        dhcp: dhcp
            .map(|(first, last)| DhcpRange { first: first.parse().unwrap(), last: last.parse().unwrap() }),
        isolated: false,
        others: ["br0".to_owned()].into(),
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |name: &str, nat: &Nat| check(name, Some(nat)).unwrap_err().to_string();
    let good = nat(&["10.77.0.1/24"], Some(("10.77.0.50", "10.77.0.150")));
    assert!(check("nat0", Some(&good)).is_ok());
    for name in ["", "../x", "a b", "nat\"0", "nat*", ".", "forwarding.json"] {
        assert!(refused(name, &good).contains("letters, digits"), "{name}");
        assert!(check(name, None).is_err());
    }
    for (addresses, dhcp, want) in [
        (&["10.77.0.1/24"][..], ("10.77.1.50", "10.77.1.60"), "reach no guest"),
        (&["10.77.0.1/24"], ("10.77.0.50", "10.77.1.60"), "reach no guest"),
        (&["10.77.0.1/24"], ("10.77.0.60", "10.77.0.50"), "first to a last"),
        (&["10.77.0.1/24", "10.77.1.1/24"], ("10.77.0.60", "10.77.1.50"), "one network"),
        (&["10.77.0.100/24"], ("10.77.0.50", "10.77.0.150"), "own address 10.77.0.100"),
        (&["fd00::1/64"], ("10.77.0.50", "10.77.0.150"), "reach no guest"),
        (&[], ("10.77.0.50", "10.77.0.150"), "needs an address"),
    ] {
        let error = refused("nat0", &nat(addresses, Some(dhcp)));
        assert!(error.contains(want), "{error}");
    }
    let other = Nat { others: ["a\" accept".to_owned()].into(), ..good };
    assert_eq!(refused("nat0", &other), "nat0: `a\" accept` is no name of a network");
}

#[test]
fn the_table_is_whole_and_in_order() {
    let open = nat(&["10.77.0.1/24", "fd77::1/64", "10.77.0.2/24"], None);
    let text = rules::text("nat0", &open);
    let want = "\
table inet throughway-nat0
delete table inet throughway-nat0
table inet throughway-nat0 {
\tchain postrouting {
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tip saddr { 10.77.0.0/24 } oifname != \"nat0\" masquerade
\t\tip6 saddr { fd77::/64 } oifname != \"nat0\" masquerade
\t}
\tchain forward {
\t\ttype filter hook forward priority 0; policy accept;
\t\tiifname != \"nat0\" oifname != \"nat0\" accept
\t\tiifname \"nat0\" oifname \"nat0\" accept
\t\tiifname \"nat0\" ip saddr != { 10.77.0.0/24 } drop
\t\tiifname \"nat0\" ip6 saddr != { fd77::/64 } drop
\t\tct state established,related accept
\t\tiifname \"br0\" oifname \"nat0\" accept
\t\toifname \"nat0\" drop
\t}
}
";
    assert_eq!(text, want);
    let isolated = Nat { isolated: true, ..nat(&["10.77.0.1/24"], None) };
    let text = rules::text("nat0", &isolated);
    assert!(text.contains("iifname \"nat0\" oifname \"br0\" drop\n"));
    assert!(text.contains("iifname \"nat0\" meta nfproto ipv6 drop\n"));
}

#[test]
fn the_first_line_that_differs_is_told() {
    let first = rules::first_difference;
    assert_eq!(first(Some("a\nb"), Some("a\nb")), None);
    assert_eq!(first(Some("a\n\tb"), Some("a\n\tc")), Some(("b".to_owned(), "c".to_owned())));
    assert_eq!(first(Some("a\nb"), Some("a")), Some(("b".to_owned(), "the end".to_owned())));
    assert_eq!(first(Some("a"), None), Some(("a table".to_owned(), "none".to_owned())));
}
