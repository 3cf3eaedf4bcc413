//! API tokens: for programs, of a user, with no more rights than he has, and until a day that is said beforehand.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::secret::{self, Digest};
use super::store::Store;
use crate::control::{Problem, Role};

/// What each begins with, so that people and scanners know one when they see it.
pub(super) const PREFIX: &str = "twy_";
/// The schema of the file.
const VERSION: u32 = 1;
/// So many there are.
const MOST: usize = 256;
/// The longest that one is good for, in days.
pub(super) const MOST_DAYS: u32 = 366;

/// A token, without its secret, which is told once and kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Token {
    /// What it is removed by.
    pub id: String,
    /// What its user calls it.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// What it may do: never more than its user.
    pub role: Role,
    /// It may give devices of the host to guests, while its user may.
    pub assign_devices: bool,
    /// When it was made.
    pub created: u64,
    /// When it ends.
    pub expires: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Kept {
    name: String,
    user: String,
    role: Role,
    assign_devices: bool,
    created: u64,
    expires: u64,
    sha256: Digest,
}

impl Kept {
    /// Without what nobody else is told.
    pub(super) fn shown(&self) -> Token {
        Token {
            id: self.sha256.short().to_owned(),
            name: self.name.clone(),
            user: self.user.clone(),
            role: self.role,
            assign_devices: self.assign_devices,
            created: self.created,
            expires: self.expires,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Contents {
    version: u32,
    tokens: Vec<Kept>,
}

/// All of them.
pub(super) struct Tokens {
    store: Store,
    all: Vec<Kept>,
}

impl Tokens {
    /// As the file has them.
    ///
    /// # Errors
    /// It cannot be read, or is wrong.
    pub(super) fn open(path: PathBuf) -> Result<Self, Problem> {
        let mut store = Store::new(path);
        let text = store.read_if_changed()?.unwrap_or_default();
        let wrong = |why: String| {
            Problem::unavailable(format!(
                "The file of tokens, {}, is wrong: {why}. Put it right, or remove it and make new tokens",
                store.path().display()
            ))
        };
        let all = if text.is_empty() {
            Vec::new()
        } else {
            let contents: Contents = serde_yaml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
            if contents.version != VERSION {
                return Err(wrong(format!("it has version {}, and {VERSION} is known", contents.version)));
            }
            contents.tokens
        };
        Ok(Self { store, all })
    }

    /// Those that are good now.
    pub(super) fn now(&self, now: u64) -> impl Iterator<Item = &Kept> {
        self.all.iter().filter(move |token| now < token.expires)
    }

    /// The one that a secret is of.
    pub(super) fn find(&self, secret: &str, now: u64) -> Option<Token> {
        let digest = Digest::of(secret);
        self.now(now).find(|token| token.sha256.is(&digest)).map(Kept::shown)
    }

    /// The one with an id.
    pub(super) fn by_id(&self, id: &str, now: u64) -> Option<Token> {
        self.now(now).find(|token| token.sha256.short() == id).map(Kept::shown)
    }

    /// Makes one; its secret, and what it is. The id of `like` is not looked at.
    ///
    /// # Errors
    /// There are too many, its user has one of that name, or it cannot be written down.
    pub(super) fn add(&mut self, like: Token) -> Result<(String, Token), Problem> {
        let secret = secret::long().map_err(|error| Problem::fault(format!("No random bytes: {error}")))?;
        let secret = format!("{PREFIX}{secret}");
        let mut all: Vec<Kept> = self.now(like.created).cloned().collect();
        if all.len() >= MOST {
            return Err(Problem::conflict(format!("There are {MOST} tokens at most; remove some")));
        }
        if all.iter().any(|token| token.user == like.user && token.name == like.name) {
            return Err(Problem::conflict(format!("{} has a token {} already", like.user, like.name)));
        }
        let token = Kept {
            name: like.name,
            user: like.user,
            role: like.role,
            assign_devices: like.assign_devices,
            created: like.created,
            expires: like.expires,
            sha256: Digest::of(&secret),
        };
        let shown = token.shown();
        all.push(token);
        self.write(all)?;
        Ok((secret, shown))
    }

    /// Removes those that it says so of, and those that are good no more.
    ///
    /// # Errors
    /// It cannot be written down; they are there still.
    pub(super) fn remove(&mut self, which: impl Fn(&Token) -> bool, now: u64) -> Result<(), Problem> {
        let left: Vec<Kept> = self.now(now).filter(|token| !which(&token.shown())).cloned().collect();
        if left.len() == self.all.len() {
            return Ok(());
        }
        self.write(left)
    }

    fn write(&mut self, tokens: Vec<Kept>) -> Result<(), Problem> {
        let contents = Contents { version: VERSION, tokens };
        let text = serde_yaml::to_string(&contents)
            .map_err(|error| Problem::fault(format!("Cannot write the tokens: {error}")))?;
        self.store.write(&text, true)?;
        self.all = contents.tokens;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(name: &str, expires: u64) -> Token {
        Token {
            id: String::new(),
            name: name.into(),
            user: "ada".into(),
            role: Role::Operator,
            assign_devices: false,
            created: 10,
            expires,
        }
    }

    #[test]
    fn its_secret_is_told_once_and_kept_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.yaml");
        let mut tokens = Tokens::open(path.clone()).unwrap();
        let (secret, token) = tokens.add(like("ci", 100)).unwrap();
        assert!(secret.starts_with("twy_") && secret.len() == 56, "{}", secret.len());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&secret[4..]) && text.starts_with("version: 1\n"), "{text}");
        let again = Tokens::open(path).unwrap();
        assert_eq!(again.find(&secret, 99), Some(token.clone()));
        assert_eq!(again.by_id(&token.id, 99), Some(token));
        assert_eq!(again.find(&secret, 100), None);
        assert_eq!(again.find(&secret[..55], 99), None);
        assert_eq!(again.find("", 99), None);
    }

    #[test]
    fn one_that_is_removed_or_old_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut tokens = Tokens::open(folder.path().join("tokens.yaml")).unwrap();
        let (one, _) = tokens.add(like("one", 100)).unwrap();
        tokens.add(like("old", 50)).unwrap();
        assert_eq!(tokens.add(like("one", 100)).unwrap_err().status, 409);
        tokens.remove(|token| token.name == "one", 60).unwrap();
        assert_eq!(tokens.find(&one, 60), None);
        assert!(tokens.all.is_empty());
    }

    #[test]
    fn a_wrong_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.yaml");
        for wrong in ["version: 2\ntokens: []\n", "version: 1\ntokens: 1\n", "tokens"] {
            std::fs::write(&path, wrong).unwrap();
            assert_eq!(Tokens::open(path.clone()).err().unwrap().status, 503);
        }
    }
}
