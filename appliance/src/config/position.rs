//! Where in a file something stands. The parser keeps marks only in its errors, so one is caused on purpose at the place.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};

/// One step down into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a map, at the `nth` time that the key is there (from 0).
    Key(String, usize),
    /// Into a sequence.
    Index(usize),
}

impl Step {
    pub(super) fn key(name: impl Into<String>) -> Self {
        Self::Key(name.into(), 0)
    }
}

/// What of the last step is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The key itself.
    Key,
    /// What it leads to.
    Value,
}

/// Line and column, both from 1, of the end of a path; of the longest part of it that is there.
pub(super) fn locate(text: &str, path: &[Step], end: End) -> Option<(usize, usize)> {
    (0..=path.len()).rev().find_map(|length| {
        let end = if length == path.len() { end } else { End::Value };
        let seed = Seek { path: path.get(..length)?, end };
        let error = seed.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
        error.to_string().contains(MARK).then(|| error.location().map(|at| (at.line(), at.column())))?
    })
}

const MARK: &str = "throughway: this is the place";

#[derive(Clone, Copy)]
struct Seek<'a> {
    path: &'a [Step],
    end: End,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(name, nth), rest)) = self.path.split_first() else {
            return Err(A::Error::custom(MARK));
        };
        let mut seen = 0;
        let at_key = rest.is_empty() && self.end == End::Key;
        while let Some(hit) = map.next_key_seed(Key { name, fail_at: at_key.then_some((*nth, seen)) })? {
            if hit && seen == *nth {
                return map.next_value_seed(Seek { path: rest, end: self.end });
            }
            seen += usize::from(hit);
            map.next_value::<serde::de::IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(index), rest)) = self.path.split_first() else {
            return Err(A::Error::custom(MARK));
        };
        for _ in 0..*index {
            if seq.next_element::<serde::de::IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        seq.next_element_seed(Seek { path: rest, end: self.end }).map(|_| ())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(MARK))
    }
}

/// A key of a map: whether it is the one that is looked for.
struct Key<'a> {
    name: &'a str,
    /// Fail at the key itself, when this many of it have been seen.
    fail_at: Option<(usize, usize)>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        let hit = key == self.name;
        match self.fail_at {
            Some((wanted, seen)) if hit && wanted == seen => Err(E::custom(MARK)),
            _ => Ok(hit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\nversion: 1\nvms:\n  a: {cpus: 2, memory: 1GiB}\n  b:\n    nics:\n      - x\n      - y: 1\n  a:\n    z: 2\n";

    fn keys(path: &str) -> Vec<Step> {
        path.split('/').map(|part| part.parse().map_or_else(|_| Step::key(part), Step::Index)).collect()
    }

    #[test]
    fn keys_and_values_are_found_wherever_they_are() {
        for (path, end, place) in [
            ("version", End::Key, (2, 1)),
            ("version", End::Value, (2, 10)),
            ("vms/a/memory", End::Key, (4, 16)),
            ("vms/a/memory", End::Value, (4, 24)),
            ("vms/b/nics/1/y", End::Value, (8, 12)),
        ] {
            assert_eq!(locate(TEXT, &keys(path), end), Some(place), "{path}");
        }
        let second = [Step::key("vms"), Step::Key("a".into(), 1)];
        assert_eq!(locate(TEXT, &second, End::Key), Some((9, 3)));
    }

    #[test]
    fn what_is_not_there_is_at_its_parent() {
        assert_eq!(
            locate(TEXT, &keys("vms/b/absent/more"), End::Value),
            locate(TEXT, &keys("vms/b"), End::Value)
        );
    }
}
