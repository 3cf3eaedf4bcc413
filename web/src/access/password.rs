//! Passwords: Argon2id, a few at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use super::secret;
use crate::control::Problem;

/// Of OWASP's choices the one with the least memory that it recommends first: 19 MiB, two passes, one lane.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// A hash that was put into the file by hand may cost this much memory at most, in KiB, and this many passes.
const DEAREST: (u32, u32, u32) = (128 * 1024, 16, 8);
/// How many are worked on at once: memory is bounded by it, and processors are left for the rest.
const AT_ONCE: usize = 2;
/// How many wait for that before more are sent away.
const WAITING: usize = 16;
/// Of nobody's password: what an unknown user is compared with, so that he costs as much as one who is known.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IG5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// The shortest password, in characters.
pub(super) const SHORTEST: usize = 10;
/// The longest, in bytes: nobody is to be kept busy with megabytes.
pub(super) const LONGEST: usize = 1024;

/// Who makes and compares hashes.
#[derive(Debug)]
pub(super) struct Passwords {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Passwords {
    /// With nothing to do.
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0) }
    }

    /// What is kept of a password: a PHC string.
    ///
    /// # Errors
    /// It is too short or too long, or there is too much to do.
    pub(super) async fn hash(&self, name: &str, password: String) -> Result<String, Problem> {
        fit(name, &password)?;
        let salt =
            secret::bytes::<16>().map_err(|error| Problem::fault(format!("No random bytes: {error}")))?;
        let made = self
            .work(move || {
                let params = Params::new(COST.0, COST.1, COST.2, None).map_err(|error| error.to_string())?;
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_with_salt(password.as_bytes(), &salt)
                    .map(|hash| hash.to_string())
                    .map_err(|error| error.to_string())
            })
            .await?;
        made.map_err(|error| Problem::fault(format!("Cannot hash a password: {error}")))
    }

    /// Whether it is the password that a hash was made of. Without one the answer is no, after the same work.
    ///
    /// # Errors
    /// There is too much to do.
    pub(super) async fn is(&self, hash: Option<String>, password: String) -> Result<bool, Problem> {
        let known = hash.is_some() && password.len() <= LONGEST;
        let hash = if known { hash } else { None };
        self.work(move || {
            let text = hash.as_deref().unwrap_or(NOBODY);
            let same = PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
            same && known
        })
        .await
    }

    /// On a thread that may be kept busy, when there is a place.
    async fn work<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let waits = Waits::one_more(&self.waiting)?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| busy())?;
        drop(waits);
        // The place is given back with the memory, also where nobody waits for the answer any more.
        tokio::task::spawn_blocking(move || {
            let done = what();
            drop(place);
            done
        })
        .await
        .map_err(|_| Problem::fault("A password could not be worked on; see the log"))
    }
}

/// Somebody waits for a place.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn one_more(count: &'a AtomicUsize) -> Result<Self, Problem> {
        let waits = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) >= WAITING { Err(busy()) } else { Ok(waits) }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn busy() -> Problem {
    Problem::unavailable("Too many people log in at this moment; try again in a few seconds")
}

/// Whether a password may be somebody's.
fn fit(name: &str, password: &str) -> Result<(), Problem> {
    if password.chars().count() < SHORTEST {
        return Err(Problem::malformed(format!("A password has {SHORTEST} characters or more")));
    }
    if password.len() > LONGEST {
        return Err(Problem::malformed(format!("A password has {LONGEST} bytes at most")));
    }
    if password.eq_ignore_ascii_case(name) {
        return Err(Problem::malformed("A password is not the name it goes with"));
    }
    Ok(())
}

/// Whether a hash is one that can be compared with, without costing more than this box bears.
pub(super) fn well_formed(hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    let Ok(params) = Params::try_from(&hash) else { return false };
    hash.algorithm.as_str() == "argon2id"
        && hash.salt.is_some()
        && hash.hash.is_some()
        && params.m_cost() <= DEAREST.0
        && params.t_cost() <= DEAREST.1
        && params.p_cost() <= DEAREST.2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_right_one_is_right_and_no_other_is() {
        let passwords = Passwords::new();
        let hash = passwords.hash("ada", "correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(well_formed(&hash));
        assert!(passwords.is(Some(hash.clone()), "correct horse".into()).await.unwrap());
        assert!(!passwords.is(Some(hash.clone()), "correct horsf".into()).await.unwrap());
        assert!(!passwords.is(Some(hash), String::new()).await.unwrap());
        assert!(!passwords.is(None, "correct horse".into()).await.unwrap());
        assert_ne!(
            passwords.hash("ada", "correct horse".into()).await.unwrap(),
            passwords.hash("ada", "correct horse".into()).await.unwrap()
        );
    }

    #[test]
    fn nobody_costs_what_somebody_costs() {
        assert!(well_formed(NOBODY));
        let hash = PasswordHash::new(NOBODY).unwrap();
        let params = Params::try_from(&hash).unwrap();
        assert_eq!((params.m_cost(), params.t_cost(), params.p_cost()), COST);
    }

    #[test]
    fn a_hash_that_is_none_or_costs_too_much_is_told() {
        for bad in [
            "",
            "secret",
            "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IG5vYm9keQ",
            "$argon2d$v=19$m=19456,t=2,p=1$bm9ib2R5IG5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=4000000,t=2,p=1$bm9ib2R5IG5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(!well_formed(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_too_short_or_too_long_is_refused() {
        let passwords = Passwords::new();
        for bad in ["", "123456789", "Administrator1", &"x".repeat(LONGEST + 1)] {
            assert_eq!(passwords.hash("administrator1", bad.into()).await.unwrap_err().status, 400);
        }
        assert!(!passwords.is(Some(NOBODY.into()), "x".repeat(LONGEST + 1)).await.unwrap());
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let passwords = Passwords::new();
        let places = passwords.places.acquire_many(2).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(passwords.is(None, "x".into()))).collect();
        for one in &mut waiting {
            assert!(futures_util::FutureExt::now_or_never(one.as_mut()).is_none());
        }
        assert_eq!(passwords.is(None, "x".into()).await.unwrap_err().status, 503);
        drop(places);
        for one in waiting {
            assert!(!one.await.unwrap());
        }
        assert!(!passwords.is(None, "x".into()).await.unwrap());
    }
}
