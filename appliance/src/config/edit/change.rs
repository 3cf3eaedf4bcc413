//! Values of the file that are set, added and taken out by their path of keys.
//!
//! Each change is made in the text, and the text is read again: where it does not say what was meant, the file is written in a
//! way that is not understood here, and nothing is changed.

use serde_yaml::{Mapping, Value};

use super::{block, double_quoted, flow, single_quoted};
use crate::config::Document;
use crate::config::position::{End, Step, locate};

/// A value for a path of keys; none takes it out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) path: Vec<String>,
    pub(super) to: Option<Value>,
}

/// Longer maps are written a key a line.
const WIDEST: usize = 90;

impl Document {
    /// The text with these changes, and all else as it is. None where it is written in a way that is not understood.
    pub(super) fn with(&self, changes: &[Change]) -> Option<String> {
        let mut meant = self.tree()?;
        let mut text = self.text.clone();
        for change in changes {
            let path: Vec<&str> = change.path.iter().map(String::as_str).collect();
            if at(&meant, &path) == change.to.as_ref() {
                continue;
            }
            set(&mut meant, &path, change.to.clone())?;
            let document = Self { name: String::new(), text };
            text = match &change.to {
                None => document.without(&path)?,
                Some(value) => document.with_value(&path, value)?,
            };
            // A map that has lost its last key says nothing, which is not the same as an empty one to a reader of YAML.
            let changed = Self { name: String::new(), text };
            if !same(&changed.tree()?, &meant) {
                return None;
            }
            text = changed.text;
        }
        Some(text)
    }

    pub(super) fn tree(&self) -> Option<Value> {
        let read: Value = serde_yaml::from_str(&self.text).ok()?;
        match read {
            Value::Null => Some(Value::Mapping(Mapping::new())),
            Value::Mapping(_) => Some(read),
            _ => None,
        }
    }

    fn with_value(&self, path: &[&str], value: &Value) -> Option<String> {
        let tree = self.tree()?;
        match at(&tree, path) {
            Some(Value::Mapping(_) | Value::Sequence(_) | Value::Tagged(_)) => {
                let taken = Self { name: String::new(), text: self.without(path)? };
                taken.with_entry(path, value)
            }
            Some(Value::Null) | None => self.with_entry(path, value),
            Some(_) if !is_scalar(value) => {
                let taken = Self { name: String::new(), text: self.without(path)? };
                taken.with_entry(path, value)
            }
            Some(_) => {
                let start = self.offset(path, End::Value)?;
                let (before, rest) = (self.text.get(..start)?, self.text.get(start..)?);
                let length = match rest.chars().next()? {
                    '"' => double_quoted(rest)?,
                    '\'' => single_quoted(rest)?,
                    '|' | '>' | '&' | '*' | '!' => return None,
                    _ => plain(rest, self.is_in_braces(path)),
                };
                Some([before, &scalar(value), rest.get(length..)?].concat())
            }
        }
    }

    /// Whether what a path leads to is an entry of a map in braces.
    fn is_in_braces(&self, path: &[&str]) -> bool {
        let lead = || {
            let start = self.offset(path, End::Key)?;
            self.text.get(..start)?.rsplit('\n').next()
        };
        !lead().is_some_and(|lead| lead.chars().all(|c| c == ' '))
    }

    /// With an entry that is not there: in the nearest map above it that is.
    fn with_entry(&self, path: &[&str], value: &Value) -> Option<String> {
        let tree = self.tree()?;
        let there = (0..path.len()).rev().find(|length| {
            path.get(..*length)
                .and_then(|above| at(&tree, above))
                .is_some_and(|above| !is_scalar(above) || above.is_null())
        })?;
        let (above, missing) = path.split_at(there);
        let (key, deeper) = missing.split_first()?;
        let value = deeper.iter().rev().fold(value.clone(), |value, key| {
            Value::Mapping(Mapping::from_iter([(Value::from(*key), value)]))
        });
        if above.is_empty() {
            let gap = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { "\n" };
            let room = if self.text.trim().is_empty() { "" } else { "\n" };
            return Some([&self.text, gap, room, &lines(key, &value, 0)].concat());
        }
        let map = at(&tree, above)?;
        let key_at = self.offset(above, End::Key)?;
        let (before, rest) = (self.text.get(..key_at)?, self.text.get(key_at..)?);
        let lead = before.rsplit('\n').next()?;
        let in_lines = lead.chars().all(|c| c == ' ');
        let value_at = self.offset(above, End::Value)?;
        let braces = self.text.get(value_at..).is_some_and(|value| value.starts_with('{'));
        if map.is_null() || (map.as_mapping()?.is_empty() && in_lines) {
            if !in_lines {
                return None;
            }
            // `key:` or `key: {}`, and perhaps a comment: what belongs to it begins in the next line.
            let line = rest.find('\n').map_or(rest.len(), |end| end + 1);
            let (first, after) = rest.split_at(line);
            let first = first.replacen(" {}", "", 1);
            let end = if first.ends_with('\n') { "" } else { "\n" };
            return Some([before, &first, end, &lines(key, &value, lead.len() + 2), after].concat());
        }
        if braces {
            let end = value_at.checked_add(closing(self.text.get(value_at..)?)?)?;
            let (head, tail) = (self.text.get(..end)?, self.text.get(end..)?);
            let kept = head.trim_end_matches([' ', '\n']);
            let gap = if kept.ends_with('{') {
                ""
            } else if kept.ends_with(',') {
                " "
            } else {
                ", "
            };
            let blanks = head.get(kept.len()..)?;
            return Some(
                [kept, gap, &format!("{}: {}", scalar(&Value::from(*key)), inline(&value)), blanks, tail]
                    .concat(),
            );
        }
        if !in_lines {
            return None;
        }
        // The keys of a map are all as deep as its first one.
        let first = map.as_mapping()?.keys().next()?.as_str()?;
        let steps: Vec<Step> = above.iter().copied().chain([first]).map(Step::key).collect();
        let (_, column) = locate(&self.text, &steps, End::Key)?;
        let end = key_at.checked_add(block(rest, lead.len()))?;
        let (head, tail) = (self.text.get(..end)?, self.text.get(end..)?);
        let gap = if head.ends_with('\n') { "" } else { "\n" };
        Some([head, gap, &lines(key, &value, column.checked_sub(1)?), tail].concat())
    }
}

/// What a path of keys leads to.
pub(super) fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.as_mapping()?.get(*key))
}

fn set(value: &mut Value, path: &[&str], to: Option<Value>) -> Option<()> {
    let Some((key, deeper)) = path.split_first() else {
        *value = to?;
        return Some(());
    };
    if value.is_null() {
        *value = Value::Mapping(Mapping::new());
    }
    let map = value.as_mapping_mut()?;
    if deeper.is_empty() && to.is_none() {
        map.remove(*key);
        return Some(());
    }
    let below = map.entry(Value::from(*key)).or_insert(Value::Null);
    set(below, deeper, to)
}

/// Whether two trees say the same; a map without keys says as much as nothing.
fn same(a: &Value, b: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Mapping(map) => map.is_empty(),
        _ => false,
    };
    match (a, b) {
        _ if empty(a) && empty(b) => true,
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        _ => a == b,
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))
}

/// Bytes of a scalar without quotes, on one line.
fn plain(text: &str, in_braces: bool) -> usize {
    let line = text.find('\n').unwrap_or(text.len());
    let line = text.get(..line).unwrap_or(text);
    let comment = line.find(" #").unwrap_or(line.len());
    let colon = line.find(": ").unwrap_or(line.len());
    let brace = if in_braces { line.find([',', '}', ']']).unwrap_or(line.len()) } else { line.len() };
    let end = comment.min(colon).min(brace);
    line.get(..end).map_or(0, |text| text.trim_end().len())
}

/// Bytes of a map in braces to the brace that closes it.
fn closing(text: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        at += flow(text.get(at..)?)?;
        match text.get(at..)?.chars().next()? {
            '}' => return Some(at),
            ',' => at += 1,
            _ => return None,
        }
    }
}

/// A scalar as a person would write it: in quotes where it would be taken for something else.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(text) => {
            let simple = |c: char| c.is_ascii_alphanumeric() || "/._=@+-".contains(c);
            let bare =
                text.chars().all(simple) && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
            let read = || serde_yaml::from_str::<Value>(text).ok();
            if bare && read().as_ref() == Some(value) {
                return text.clone();
            }
            // JSON's strings are YAML's in double quotes.
            serde_json::to_string(text).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Mapping(map) => {
            let entries = map.iter().map(|(key, value)| format!("{}: {}", scalar(key), inline(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Sequence(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        other => scalar(other),
    }
}

/// An entry of a map with all that is below it, `indent` in.
fn lines(key: &str, value: &Value, indent: usize) -> String {
    let lead = " ".repeat(indent);
    let name = scalar(&Value::from(key));
    match value {
        Value::Mapping(map) if !map.is_empty() => {
            let flat = map.values().all(is_scalar);
            let short = format!("{lead}{name}: {}\n", inline(value));
            if flat && indent > 2 && short.len() <= WIDEST {
                return short;
            }
            let below =
                map.iter().map(|(key, value)| lines(key.as_str().unwrap_or_default(), value, indent + 2));
            format!("{lead}{name}:\n{}", below.collect::<String>())
        }
        other => format!("{lead}{name}: {}\n", inline(other)),
    }
}
