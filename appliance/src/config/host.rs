//! What the file says of the box itself: `host:` and `management:`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Size;

/// How the administrator gets in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Management {
    /// The link that the administrator comes by: neither it nor what it stands on is ever given away. Where it is not said,
    /// that of the default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where the admin interface is served: `https://ADDRESS:PORT`, and on loopback addresses `http://ADDRESS:PORT` too; none
    /// with `[]`. Where it is not said, `https://[::]:8443`, which is port 8443 of all addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub listen: Option<Vec<Listen>>,
    /// How long `apply` waits for `throughway confirm` when it changed that link, before it puts everything back.
    #[serde(default)]
    pub confirm_timeout: Seconds,
}

/// The admin interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Web {
    /// The owner's own certificate, with those that vouch for it (PEM). Where it is not said, one is made at the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key (PEM), which root alone need be able to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Names that browsers may call this box by, besides its addresses and its host name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Who may log in, in a file of one's own that the admin interface only reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_file: Option<PathBuf>,
}

/// One place where the admin interface is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    /// By TLS; else plain HTTP, on a loopback address.
    pub https: bool,
    /// Where.
    pub address: SocketAddr,
}

/// Text that is no such place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoListen {
    /// It is written otherwise.
    #[error(
        "`{0}` is no place to listen at: write https://ADDRESS:PORT, such as https://192.0.2.1:8443 or https://[::]:8443"
    )]
    Form(String),
    /// It would show passwords to whoever listens on the way.
    #[error("`{0}`: plain HTTP is served on loopback addresses only (127.0.0.1, [::1]); write https://")]
    Plain(String),
}

impl TryFrom<String> for Listen {
    type Error = NoListen;

    fn try_from(text: String) -> Result<Self, NoListen> {
        let https = text.starts_with("https://");
        let address = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let address = address
            .and_then(|address| address.strip_suffix('/').unwrap_or(address).parse::<SocketAddr>().ok());
        match address.filter(|address| address.port() != 0) {
            None => Err(NoListen::Form(text)),
            Some(address) if !https && !address.ip().to_canonical().is_loopback() => {
                Err(NoListen::Plain(text))
            }
            Some(address) => Ok(Self { https, address }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http{}://{}", if self.https { "s" } else { "" }, self.address)
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl JsonSchema for Listen {
    fn schema_name() -> Cow<'static, str> {
        "Listen".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A place to listen at, such as https://192.0.2.1:8443.",
            "pattern": "^https?://.+:[0-9]+/?$"
        })
    }
}

/// What the box must have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Host {
    /// Whether a guest with a device may start without an IOMMU.
    #[serde(default)]
    pub iommu: Need,
    /// Whether it may start without interrupt remapping. Nothing is ever enabled to get around it.
    #[serde(default)]
    pub interrupt_remapping: Need,
    /// How many huge pages are set aside, by their size: `{2MiB: 512, 1GiB: 8}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hugepages: BTreeMap<Size, u64>,
    /// Processors that the host's kernel is to leave alone. Compared with its command line by `throughway doctor`, never edited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated_cpus: Option<CpuList>,
}

/// Whether something must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It must.
    #[default]
    Required,
    /// It need not.
    Optional,
}

/// A time, written `90s` or `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seconds(pub u32);

impl Default for Seconds {
    fn default() -> Self {
        Self(90)
    }
}

/// Text that is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: write seconds or minutes, such as 90s or 2m")]
pub struct NoTime(String);

impl TryFrom<String> for Seconds {
    type Error = NoTime;

    fn try_from(text: String) -> Result<Self, NoTime> {
        let unit =
            |unit: &str, factor: u32| text.strip_suffix(unit)?.parse::<u32>().ok()?.checked_mul(factor);
        unit("s", 1).or_else(|| unit("m", 60)).map(Self).ok_or(NoTime(text))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl From<Seconds> for String {
    fn from(seconds: Seconds) -> Self {
        seconds.to_string()
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "A time, such as 90s or 2m.", "pattern": "^[0-9]+[sm]$"})
    }
}

/// Processors, `4-15,20`, as the kernel writes them (Documentation/admin-guide/kernel-parameters.rst, cpu lists).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct CpuList(pub BTreeSet<u32>);

/// Processors have smaller numbers than this.
const MOST_CPUS: u32 = 8192;

/// Text that is no list of processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of processors: write numbers and ranges, such as 4-15,20")]
pub struct NoCpuList(String);

impl FromStr for CpuList {
    type Err = NoCpuList;

    fn from_str(text: &str) -> Result<Self, NoCpuList> {
        let part = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
            (first <= last && last < MOST_CPUS).then_some(first..=last)
        };
        let parts: Option<Vec<_>> = text.split(',').map(part).collect();
        parts
            .map(|parts| Self(parts.into_iter().flatten().collect()))
            .ok_or_else(|| NoCpuList(text.to_owned()))
    }
}

/// A single processor may be written as the number that it is.
impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl Visitor<'_> for List {
            type Value = CpuList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("processors, such as 4-15,20")
            }

            fn visit_u64<E: de::Error>(self, cpu: u64) -> Result<CpuList, E> {
                self.visit_str(&cpu.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuList, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(List)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges = Vec::<(u32, u32)>::new();
        for cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
                _ => ranges.push((*cpu, *cpu)),
            }
        }
        let texts: Vec<String> = ranges
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        f.write_str(&texts.join(","))
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl JsonSchema for CpuList {
    fn schema_name() -> Cow<'static, str> {
        "CpuList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "description": "Processors, such as 4-15,20.",
            "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_read_as_they_print() {
        let list: CpuList = "4-6,20,7".parse().unwrap();
        assert_eq!(list.to_string(), "4-7,20");
        for wrong in ["", "4-", "7-4", "a", "0-99999", "1,,2"] {
            assert!(wrong.parse::<CpuList>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        for text in ["https://0.0.0.0:8443", "https://[::]:8443", "http://127.0.0.1:8080", "http://[::1]:80"]
        {
            assert_eq!(Listen::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in ["http://0.0.0.0:80", "http://[::]:80", "http://192.0.2.1:80"] {
            assert!(matches!(Listen::try_from(text.to_owned()), Err(NoListen::Plain(_))), "{text}");
        }
        for text in
            ["", "8443", "https://box:8443", "https://1.2.3.4", "ftp://1.2.3.4:5", "https://1.2.3.4:0"]
        {
            assert!(matches!(Listen::try_from(text.to_owned()), Err(NoListen::Form(_))), "{text}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(Seconds::try_from("2m".to_owned()), Ok(Seconds(120)));
        for wrong in ["90", "1h", "-1s", "99999999m"] {
            assert!(Seconds::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
