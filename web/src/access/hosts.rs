//! The names that this box answers to.
//!
//! A page of a stranger's can make its own name point at this box (DNS rebinding), and is then of the same origin as ours
//! for a browser. It cannot make a browser say another name than its own, so whoever comes with a name that is not ours is
//! sent away. An address is no name: nobody can make it point elsewhere.

use std::net::IpAddr;

use crate::control::Problem;

/// All of them but addresses, in small letters.
#[derive(Debug)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// `localhost`, what the kernel calls this box, and what was added.
    pub(super) fn of_this_box(more: &[String]) -> Self {
        let own = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let mut names = vec!["localhost".to_owned()];
        if !own.is_empty() && own != "(none)" {
            // What it is in the house by multicast DNS, and its short name.
            let short = own.split('.').next().unwrap_or(&own);
            names.push(format!("{short}.local"));
            names.push(short.to_owned());
            names.push(own);
        }
        names.extend(more.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()));
        Self(names)
    }

    /// Whether what a request says it was sent to is this box.
    ///
    /// # Errors
    /// It is another, or no name at all.
    pub(super) fn check(&self, host: &str) -> Result<(), Problem> {
        let (name, _) = authority(host, 0).ok_or_else(|| Problem::malformed("The header Host is wrong"))?;
        if name.parse::<IpAddr>().is_ok() || self.0.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(Problem::misdirected(
            "This box is not known by the name that was asked for. Use its address or its host name, or add the name to \
             `web.hosts` in the appliance file",
        ))
    }
}

/// A host without brackets and a last dot, and its port or the one that goes without saying.
pub(super) fn authority(text: &str, port: u16) -> Option<(&str, u16)> {
    let (host, said) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"-._:".contains(&c);
    if host.is_empty() || !host.bytes().all(fits) {
        return None;
    }
    match said {
        None => Some((host, port)),
        Some(said) if said.bytes().all(|digit| digit.is_ascii_digit()) => Some((host, said.parse().ok()?)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_own_names_are_this_box() {
        let own = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let hosts = Hosts::of_this_box(&["Box.Example.org.".into()]);
        for good in [
            "localhost",
            "localhost:8443",
            "192.0.2.1",
            "192.0.2.1:8443",
            "[2001:db8::1]",
            "[::1]:8443",
            "box.example.org",
            "box.example.org.:443",
            own.as_str(),
        ] {
            assert_eq!(hosts.check(good), Ok(()), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "box.example.org.evil", "192.0.2.1.nip.io", "1"]
        {
            assert_eq!(hosts.check(bad).unwrap_err().status, 421, "{bad}");
        }
        for bad in [
            "",
            ":",
            ":80",
            "[::1",
            "[evil]",
            "a b",
            "localhost:",
            "localhost:http",
            "user@localhost",
            "a/b",
            "[::1]x",
        ] {
            assert_eq!(hosts.check(bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn a_port_may_go_without_saying() {
        assert_eq!(authority("box", 443), Some(("box", 443)));
        assert_eq!(authority("box:8443", 443), Some(("box", 8443)));
        assert_eq!(authority("[::1]:1", 443), Some(("::1", 1)));
        assert_eq!(authority("box:65536", 443), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Hosts::of_this_box(&[]).check(&text);
        }

        #[test]
        fn no_other_name_gets_in(name in "[a-z]{1,10}\\.(com|net|example)(:[0-9]{1,4})?") {
            prop_assert!(Hosts::of_this_box(&[]).check(&name).is_err());
        }
    }
}
