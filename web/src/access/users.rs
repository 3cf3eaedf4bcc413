//! Who may come in: a YAML file that a person can read, and may write as well.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::password;
use super::store::Store;
use crate::control::{Problem, Role};

/// The schema of the file.
const VERSION: u32 = 1;
/// So many there may be.
const MOST: usize = 256;
/// What stands over them.
const HEAD: &str = "\
# Who may come in over the web. Throughway writes this file anew when somebody is added, changed or removed there; what
# root writes here by hand counts from the next request on (comments are not kept). A user without a password cannot log
# in; `throughway web code` prints a code that sets one.
";

/// A user, as others see him.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// What he logs in with.
    pub name: String,
    /// What he may do in general.
    pub role: Role,
    /// He may give devices of the host to guests.
    pub assign_devices: bool,
    /// When he was added, where that is known.
    pub created: Option<u64>,
}

/// A user, as the file has him.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) role: Role,
    #[serde(default)]
    pub(super) assign_devices: bool,
    /// A PHC string of Argon2id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<u64>,
}

impl Entry {
    /// Without what nobody else is told.
    pub(super) fn shown(&self) -> User {
        User {
            name: self.name.clone(),
            role: self.role,
            assign_devices: self.assign_devices,
            created: self.created,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Contents {
    version: u32,
    #[serde(default)]
    users: Vec<Entry>,
}

/// The file, and what it said when it could be read last.
pub(super) struct Users {
    store: Store,
    entries: Vec<Entry>,
}

impl Users {
    /// Of a file that need not be there yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { store: Store::new(path), entries: Vec::new() }
    }

    /// All of them, as the file says at this moment.
    ///
    /// # Errors
    /// It cannot be read, or is wrong: nobody comes in then until root has put it right.
    pub(super) fn now(&mut self) -> Result<&[Entry], Problem> {
        if let Some(text) = self.store.read_if_changed()? {
            match parse(&text) {
                Ok(entries) => self.entries = entries,
                Err(why) => {
                    // Read again at the next request, whether it has another date by then or not.
                    self.store.forget();
                    let at = self.store.path().display();
                    tracing::error!("{at} is wrong: {why}");
                    return Err(Problem::unavailable(format!(
                        "The file of users is wrong: {why}. Root can put {at} right"
                    )));
                }
            }
        }
        Ok(&self.entries)
    }

    /// One of them.
    ///
    /// # Errors
    /// As [`Users::now`].
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Entry>, Problem> {
        Ok(self.now()?.iter().find(|entry| entry.name == name).cloned())
    }

    /// Changes them: what was written by hand meanwhile is read first, and stays.
    ///
    /// # Errors
    /// The change says no, or the file cannot be read or written; they are as they were then.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut entries = self.now()?.to_vec();
        let answer = change(&mut entries)?;
        if entries.len() > MOST {
            return Err(Problem::conflict(format!("There are {MOST} users at most")));
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let contents = Contents { version: VERSION, users: entries };
        let text = serde_yaml::to_string(&contents)
            .map_err(|error| Problem::fault(format!("Cannot write the users: {error}")))?;
        self.store.write(&format!("{HEAD}{text}"), true)?;
        self.entries = contents.users;
        Ok(answer)
    }
}

/// Whether a name can be one: it goes into logs, paths of the API and YAML as it is.
pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let contents: Contents = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    if contents.version != VERSION {
        return Err(format!("it has version {}, and this Throughway knows {VERSION}", contents.version));
    }
    let mut names = std::collections::BTreeSet::new();
    for entry in &contents.users {
        if !is_name(&entry.name) {
            return Err(format!(
                "the name {:?} is not made of 1 to 32 small letters, digits, dots, dashes and underlines",
                entry.name
            ));
        }
        if !names.insert(&entry.name) {
            return Err(format!("there are two users {}", entry.name));
        }
        if entry.password.as_deref().is_some_and(|hash| !password::well_formed(hash)) {
            return Err(format!("the password of {} is no hash of Argon2id in PHC's form", entry.name));
        }
    }
    Ok(contents.users)
}

#[cfg(test)]
mod tests;
