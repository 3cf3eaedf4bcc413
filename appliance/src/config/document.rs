//! From text to [`Config`], in two passes: what is written twice or is no YAML, then what has the wrong name or type. All
//! problems are collected: after each one, what it is about is set aside and the rest is looked at again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use schemars::schema_for;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value as Json;
use serde_yaml::{Mapping, Value};

use super::position::{End, Step, locate};
use super::{Config, Diagnostic, Severity, Vm, validate};

/// The largest file that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;
/// The deepest nesting that is looked at.
const MOST_DEPTH: usize = 32;
/// After as many problems the rest is noise.
const MOST_PROBLEMS: usize = 100;

/// A file's text, with the name it was asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// As it was named.
    pub name: String,
    /// What is in it.
    pub text: String,
}

impl Document {
    fn problem(
        &self,
        path: &[Step],
        end: End,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        let (line, column) = locate(&self.text, path, end).unwrap_or((0, 0));
        self.at(line, column, message, help)
    }

    /// A problem at a line and column, both from 1.
    fn at(&self, line: usize, column: usize, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        let source = line.checked_sub(1).and_then(|line| self.text.lines().nth(line)).map(str::to_owned);
        let (file, message) = (self.name.clone(), message.into());
        Diagnostic { severity: Severity::Error, file, line, column, message, help, source }
    }

    /// A problem with what a path of keys from the top leads to, or with the nearest thing above it that is there.
    pub fn at_path(&self, path: &[String], message: String, help: Option<String>) -> Diagnostic {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        self.value(&path, message, help)
    }

    /// A problem with the value at a path of keys.
    pub(super) fn value(
        &self,
        path: &[&str],
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        let index =
            |part: &&str| part.strip_prefix('#').and_then(|index| index.parse().ok()).map(Step::Index);
        let steps: Vec<_> = path.iter().map(|part| index(part).unwrap_or_else(|| Step::key(*part))).collect();
        self.problem(&steps, End::Value, message, help)
    }
}

/// Reads a file's text.
pub fn read(name: &str) -> Result<Document, Diagnostic> {
    let failed = |error: std::io::Error| Diagnostic::of_file(name, format!("Reading it: {error}"), None);
    let length = std::fs::metadata(name).map_err(failed)?.len();
    if length > MOST_BYTES {
        return Err(Diagnostic::of_file(
            name,
            format!("It has {length} bytes, and {MOST_BYTES} are the most"),
            None,
        ));
    }
    let bytes = std::fs::read(name).map_err(failed)?;
    let not_text = |_| Diagnostic::of_file(name, "It is not text (UTF-8)", None);
    let text = String::from_utf8(bytes).map_err(not_text)?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    Ok(Document { name: name.to_owned(), text })
}

/// Reads it as an appliance file, or says all that is wrong with it.
pub fn load(document: &Document) -> Result<Config, Vec<Diagnostic>> {
    match load_all(document) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(problems),
    }
}

/// Says all that is wrong with it, and reads it where it can be understood all the same: then what else is in the way can be
/// said, too.
pub fn load_all(document: &Document) -> (Option<Config>, Vec<Diagnostic>) {
    let (mut value, mut problems) = match tree(document) {
        Ok(read) => read,
        Err(problems) => return (None, problems),
    };
    if problems.is_empty()
        && let Some(config) = without_schema(&value)
    {
        let problems = validate::problems(document, &config);
        return judged(Some(config), problems);
    }
    let schema = schema_for!(Config).to_value();
    let walk = Unknown { document, schema: &schema };
    walk.visit(&mut value, &schema, &mut Vec::new(), &mut problems);
    let before = problems.len();
    let config = typed(document, value, &mut problems);
    // What could not be read would be missed in the second look.
    if problems.len() > before {
        return judged(None, problems);
    }
    problems.extend(validate::problems(document, &config));
    judged(Some(config), problems)
}

fn judged(config: Option<Config>, mut problems: Vec<Diagnostic>) -> (Option<Config>, Vec<Diagnostic>) {
    problems.sort_by_key(|problem| (problem.line, problem.column));
    (config, problems)
}

/// The file where types alone tell that every key is known and of the right type: making the schema takes longer than all
/// else. They cannot where one is flattened into another, as in `Vf` and `Nic`: there a key is known for sure when what was read
/// has it, written out again.
fn without_schema(value: &Value) -> Option<Config> {
    let config = Config::deserialize(value).ok()?;
    let vfs = config.sriov.values().any(|sriov| !sriov.vfs.is_empty());
    let known = |(name, vm): (&String, &Vm)| {
        vm.nics.iter().all(|(key, nic)| {
            let written = value.get("vms").and_then(|vms| vms.get(name)?.get("nics")?.get(key)?.as_mapping());
            let read = serde_yaml::to_value(nic);
            written
                .zip(read.ok())
                .is_some_and(|(written, read)| written.keys().all(|key| read.get(key).is_some()))
        })
    };
    (!vfs && config.vms.iter().all(known)).then_some(config)
}

/// Pass 1: no YAML at all is one problem and the end; keys that are there twice are one each.
fn tree(document: &Document) -> Result<(Value, Vec<Diagnostic>), Vec<Diagnostic>> {
    let found = RefCell::default();
    let scan = Scan { path: Vec::new(), twice: &found };
    let value = match scan.deserialize(serde_yaml::Deserializer::from_str(&document.text)) {
        Ok(value) => value,
        // An empty file is an empty map.
        Err(_)
            if document
                .text
                .lines()
                .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) =>
        {
            Value::Null
        }
        Err(error) => return Err(vec![no_yaml(document, &error)]),
    };
    let problem = |path: &Vec<Step>| {
        let Some(Step::Key(name, _)) = path.last() else { return None };
        let help = Some("only one of the two can hold; take the other one out".to_owned());
        Some(document.problem(path, End::Key, format!("The key `{name}` is there twice"), help))
    };
    let problems = found.borrow().iter().filter_map(problem).collect();
    Ok((if value.is_null() { Value::Mapping(Mapping::new()) } else { value }, problems))
}

fn no_yaml(document: &Document, error: &serde_yaml::Error) -> Diagnostic {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    let text = document.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let tabs = text.trim_start_matches(' ').starts_with('\t');
    let help = if tabs { "YAML is indented by spaces, not tabs" } else { "the file is not valid YAML here" };
    document.at(line, column, capital(message), Some(help.to_owned()))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Reads a value tree and notes keys that are there twice; the first of them counts.
struct Scan<'a> {
    path: Vec<Step>,
    twice: &'a RefCell<Vec<Vec<Step>>>,
}

impl Scan<'_> {
    fn below(&self, step: Step) -> Self {
        let mut path = self.path.clone();
        path.push(step);
        Self { path, twice: self.twice }
    }
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.path.len() > MOST_DEPTH {
            return Err(D::Error::custom(format!("this is nested deeper than {MOST_DEPTH} levels")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut read = Mapping::new();
        let mut seen = Vec::<String>::new();
        while let Some(key) = map.next_key::<Value>()? {
            let name = match key {
                Value::String(name) => name,
                other => serde_yaml::to_string(&other).unwrap_or_default().trim().to_owned(),
            };
            let nth = seen.iter().filter(|other| **other == name).count();
            let below = self.below(Step::Key(name.clone(), nth));
            let path = below.path.clone();
            let value = map.next_value_seed(below)?;
            if nth > 0 {
                self.twice.borrow_mut().push(path);
            } else {
                read.insert(Value::String(name.clone()), value);
            }
            seen.push(name);
        }
        Ok(Value::Mapping(read))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.below(Step::Index(items.len())))? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("tags (`!name`) have no meaning here"))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Other tools' spellings that are read too, with ours.
pub(crate) const ALIASES: [(&str, &str); 6] = [
    ("total-vfs", "num-vfs"),
    ("numVfs", "num-vfs"),
    ("virtual-function-count", "num-vfs"),
    ("hwaddr", "mac-address"),
    ("spoofchk", "spoof-check"),
    ("embedded-switch-mode", "eswitch-mode"),
];

/// Keys of the file's format that this version cannot act on. They are refused, not passed over.
const NOT_YET: [&str; 1] = ["serial"];

/// Finds unknown keys by the schema, takes them out, and says which known key is nearest.
struct Unknown<'a> {
    document: &'a Document,
    schema: &'a Json,
}

impl Unknown<'_> {
    fn resolve<'s>(&'s self, schema: &'s Json) -> &'s Json {
        let target = schema.get("$ref").and_then(Json::as_str).and_then(|at| at.strip_prefix('#'));
        target.and_then(|at| self.schema.pointer(at)).unwrap_or(schema)
    }

    fn visit(&self, value: &mut Value, schema: &Json, path: &mut Vec<Step>, problems: &mut Vec<Diagnostic>) {
        let schema = self.resolve(schema);
        // Of several shapes, the one that is a map (or a list) says what its keys may be.
        let shapes = schema.get("anyOf").and_then(Json::as_array);
        let schema = shapes
            .and_then(|shapes| {
                shapes.iter().map(|shape| self.resolve(shape)).find(|shape| fits(value, shape))
            })
            .unwrap_or(schema);
        match value {
            Value::Mapping(map) => {
                let known = schema.get("properties").and_then(Json::as_object);
                let any = schema.get("additionalProperties").filter(|any| any.is_object());
                let names: Vec<Value> = map.keys().cloned().collect();
                for key in names {
                    let name = key.as_str().unwrap_or_default().to_owned();
                    let canonical =
                        ALIASES.iter().find(|(alias, _)| *alias == name).map_or(&*name, |(_, ours)| *ours);
                    let below = known.and_then(|known| known.get(canonical)).or(any);
                    path.push(Step::key(&name));
                    match (below, known) {
                        (Some(below), _) => {
                            if let Some(inner) = map.get_mut(&key) {
                                self.visit(inner, below, path, problems);
                            }
                        }
                        (None, Some(known)) => {
                            map.remove(&key);
                            problems.push(self.unknown(&name, known.keys().map(String::as_str), path));
                        }
                        (None, None) => {}
                    }
                    path.pop();
                }
            }
            Value::Sequence(items) => {
                let Some(schema) = schema.get("items") else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    path.push(Step::Index(index));
                    self.visit(item, schema, path, problems);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn unknown<'k>(&self, name: &str, known: impl Iterator<Item = &'k str>, path: &[Step]) -> Diagnostic {
        if NOT_YET.contains(&name) {
            let help = "it is planned; leave it out until this version's guide has it".to_owned();
            return self.document.problem(path, End::Key, format!("`{name}` is not built yet"), Some(help));
        }
        let known: BTreeSet<&str> = known.collect();
        let nearest = known.iter().map(|key| (strsim::osa_distance(name, key), *key)).min();
        // `mac` for `mac-address`: one that begins so is meant before one that looks like it.
        let longer = known.iter().find(|key| name.len() > 2 && key.starts_with(name));
        let help = match longer.map(|key| (0, *key)).or(nearest) {
            Some((distance, key)) if distance <= 1 + name.len() / 3 => format!("did you mean `{key}`?"),
            _ => format!("known here: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
        };
        self.document.problem(path, End::Key, format!("Unknown key `{name}`"), Some(help))
    }
}

fn fits(value: &Value, shape: &Json) -> bool {
    let kind = shape.get("type").and_then(Json::as_str);
    match value {
        Value::Mapping(_) => kind == Some("object") || shape.get("properties").is_some(),
        Value::Sequence(_) => kind == Some("array"),
        _ => false,
    }
}

/// Pass 2: into types. What does not fit is one problem, is taken out, and the rest is tried again.
fn typed(document: &Document, mut value: Value, problems: &mut Vec<Diagnostic>) -> Config {
    // Holes that we made ourselves are no second problem.
    let mut holes = Vec::<Vec<Step>>::new();
    while problems.len() < MOST_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, Config>(value.clone()) {
            Ok(config) => return config,
            Err(error) => error,
        };
        let path: Vec<Step> = error.path().iter().filter_map(step).collect();
        let message = error.inner().to_string();
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let own = holes.iter().any(|hole| hole.starts_with(&path));
        if missing.is_none() || !own {
            problems.push(problem(document, &path, &message, missing));
        }
        if !take_out(&mut value, &path) {
            break;
        }
        holes.push(path);
    }
    Config::default()
}

fn problem(document: &Document, path: &[Step], message: &str, missing: Option<&str>) -> Diagnostic {
    match missing {
        Some(key) if path.is_empty() => document.at(
            1,
            1,
            format!("The key `{key}` is missing"),
            (key == "version").then(|| "begin the file with `version: 1`".to_owned()),
        ),
        Some(key) => document.problem(path, End::Key, format!("The key `{key}` is missing here"), None),
        None => document.problem(path, End::Value, capital(&plain(message)), None),
    }
}

/// The parser's words for types, as a person would say them.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        // A number that was found, and is no such one, is too large or below 0.
        "u8" if found.starts_with("invalid value: integer") => "a whole number up to 255",
        "u16" if found.starts_with("invalid value: integer") => "a whole number up to 65535",
        "u32" if found.starts_with("invalid value: integer") => "a whole number up to 4294967295",
        "u8" | "u16" | "u32" | "u64" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a map" => "keys and values",
        "a sequence" => "a list",
        text if text.starts_with("struct ") => "keys and values",
        text => text,
    };
    // `variant` is the parser's word.
    let found = found.replacen("unknown variant", "unknown value", 1);
    format!("{found}, expected {expected}")
}

fn step(segment: &serde_path_to_error::Segment) -> Option<Step> {
    use serde_path_to_error::Segment;
    match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::key(key)),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// Takes out what a path leads to. False where there is nothing to take out any more.
fn take_out(value: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let mut at = value;
    for step in parents {
        let below = match (step, at) {
            (Step::Key(name, _), Value::Mapping(map)) => map.get_mut(name.as_str()),
            (Step::Index(index), Value::Sequence(items)) => items.get_mut(*index),
            _ => None,
        };
        let Some(below) = below else { return false };
        at = below;
    }
    match (last, at) {
        (Step::Key(name, _), Value::Mapping(map)) => map.remove(name.as_str()).is_some(),
        // The places of the others must stay: a list is given up whole.
        (Step::Index(_), Value::Sequence(items)) => !std::mem::take(items).is_empty(),
        _ => false,
    }
}
