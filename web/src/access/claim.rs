//! The code that makes somebody an administrator: printed where only who has the box, or is its root, can read it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::secret::{self, Digest};
use super::store::Store;
use crate::control::Problem;

/// A code is good for this long, in seconds.
pub const CODE_LASTS: u64 = 60 * 60;
/// Its file in the folder of the web process.
pub const CODE_FILE: &str = "code.json";

/// What is kept of a code.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Kept {
    sha256: Digest,
    expires: u64,
}

/// A code as it is printed, and the file's text that makes it good: root writes it where the web process reads it.
///
/// # Errors
/// The kernel has no random bytes.
pub fn new_code(now: u64) -> Result<(String, String), Problem> {
    let fault = |error: &dyn std::fmt::Display| Problem::fault(format!("Cannot make a code: {error}"));
    // 60 bits: with the limits on how often one may be wrong there is no guessing them in an hour.
    let bytes = secret::bytes::<8>().map_err(|error| fault(&error))?;
    let code: String = secret::base32(&bytes).chars().take(12).collect();
    let kept = Kept { sha256: Digest::of(&code), expires: now.saturating_add(CODE_LASTS) };
    let text = serde_json::to_string(&kept).map_err(|error| fault(&error))?;
    let parts: Vec<_> = code.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
    Ok((parts.join("-").to_ascii_uppercase(), text))
}

/// The code that is good, if any.
pub(super) struct Code {
    store: Store,
}

impl Code {
    /// Of a file that root may write at any time.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { store: Store::new(path) }
    }

    /// Makes a new one; the one before it is good no more.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(super) fn renew(&mut self, now: u64) -> Result<String, Problem> {
        let (code, text) = new_code(now)?;
        self.store.write(&text, true)?;
        Ok(code)
    }

    /// There is one that is good.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn stands(&mut self, now: u64) -> Result<bool, Problem> {
        Ok(self.kept()?.is_some_and(|kept| good(&kept, now)))
    }

    /// Whether it is this one.
    ///
    /// # Errors
    /// It is another, or too old, or there is none.
    pub(super) fn check(&mut self, said: &str, now: u64) -> Result<(), Problem> {
        let help = "Root gets a new one with `throughway web code`";
        let Some(kept) = self.kept()? else {
            return Err(Problem::forbidden(format!("No code is good at this time. {help}")));
        };
        // Compared first: who does not know the code is not told how old it is.
        if !kept.sha256.is(&Digest::of(&plain(said))) {
            return Err(Problem::forbidden(format!("That is not the code. {help}")));
        }
        if !good(&kept, now) {
            return Err(Problem::forbidden(format!("That code is too old: it was good for an hour. {help}")));
        }
        Ok(())
    }

    /// It was used.
    ///
    /// # Errors
    /// It is there still.
    pub(super) fn spend(&mut self) -> Result<(), Problem> {
        self.store.remove()
    }

    fn kept(&mut self) -> Result<Option<Kept>, Problem> {
        self.store.forget();
        let text = self.store.read_if_changed()?.unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).map_err(|error| {
            let at = self.store.path().display();
            Problem::unavailable(format!("{at} is wrong: {error}. `throughway web code` makes a new one"))
        })
    }
}

/// A clock that was set back far makes no code live for ever.
fn good(kept: &Kept, now: u64) -> bool {
    now < kept.expires && kept.expires <= now.saturating_add(2 * CODE_LASTS)
}

/// As a person types it, so that it is the one that was meant.
fn plain(said: &str) -> String {
    said.chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            other => other,
        })
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_once_and_for_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CODE_FILE);
        let mut code = Code::new(path.clone());
        assert!(!code.stands(100).unwrap());
        assert_eq!(code.check("", 100).unwrap_err().status, 403);
        let printed = code.renew(100).unwrap();
        assert_eq!(printed.len(), 14, "{printed}");
        assert!(code.stands(100).unwrap());
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&plain(&printed)));
        code.check(&printed, 100).unwrap();
        code.check(&format!(" {} ", printed.to_lowercase().replace('-', " ")), 100).unwrap();
        assert!(code.check("0000-0000-0000", 100).unwrap_err().detail.contains("not the code"));
        assert!(code.check(&printed, 100 + CODE_LASTS).unwrap_err().detail.contains("too old"));
        let newer = code.renew(200).unwrap();
        assert!(code.check(&printed, 200).is_err());
        code.spend().unwrap();
        assert!(code.check(&newer, 200).unwrap_err().detail.contains("No code"));
    }

    #[test]
    fn what_root_writes_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CODE_FILE);
        let mut code = Code::new(path.clone());
        let old = code.renew(100).unwrap();
        let (new, text) = new_code(100).unwrap();
        std::fs::write(&path, text).unwrap();
        assert!(code.check(&old, 100).is_err());
        code.check(&new, 100).unwrap();
        std::fs::write(&path, "code").unwrap();
        assert_eq!(code.check(&new, 100).unwrap_err().status, 503);
    }

    #[test]
    fn letters_that_look_alike_are_alike() {
        assert_eq!(plain("oOiIlL-a b"), "001111ab");
    }
}
