//! Who may come in, and what every request goes through before anything else looks at it.
//!
//! A box that nobody has claimed has no users and no password. A code that is printed where only its owner or its root can
//! read it makes the first administrator, and later gets root back in who has lost his password. People log in with a
//! password and keep a session in a cookie; programs have tokens; whoever comes by the local socket is known by his user
//! id. What is kept in the folder: `users.yaml`, `tokens.yaml`, `sessions.json`, `limits.json` and `code.json`, with nothing in
//! them that one could log in with.

mod claim;
mod cookie;
mod entry;
mod gate;
mod hosts;
mod keys;
mod limits;
mod password;
mod people;
pub(crate) mod routes;
mod secret;
mod sessions;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
mod users;
mod visitor;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(not(test))]
use std::time::SystemTime;

use tokio::sync::watch;

pub use claim::{CODE_FILE, CODE_LASTS, new_code};
pub use cookie::SetCookie;
pub use gate::CSRF;
pub use keys::{MadeToken, NewToken};
pub use people::{NewUser, UserChange};
pub use routes::routes;
pub use tokens::Token;
pub use users::User;
pub use visitor::{Form, Login, OpenForm, Refusal, Session, Until, Via, Visit};

use crate::control::{Actor, Problem, Role, Shared};

/// What [`Access`] is opened with.
pub struct Settings {
    /// Its folder, which is there and is its own.
    pub folder: PathBuf,
    /// The file of users, where it is not in the folder.
    pub users_file: Option<PathBuf>,
    /// Names of this box beside those that it knows itself by.
    pub hosts: Vec<String>,
    /// Prints a code where only the box's owner or its root can read it.
    pub announce: Box<dyn Fn(&str) + Send + Sync>,
}

/// Who may come in. Its clones are the same one.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    control: Shared,
    announce: Box<dyn Fn(&str) + Send + Sync>,
    hosts: hosts::Hosts,
    passwords: password::Passwords,
    users: Mutex<users::Users>,
    tokens: Mutex<tokens::Tokens>,
    sessions: Mutex<sessions::Sessions>,
    limits: Mutex<limits::Limits>,
    code: Mutex<claim::Code>,
    /// Counts what may have ended somebody's login.
    changes: watch::Sender<u64>,
    clock: Clock,
}

impl Access {
    /// Reads the folder. Where nobody has claimed the box, a code is made and announced.
    ///
    /// # Errors
    /// The file of tokens cannot be read, or is wrong. That of users is said to each who comes, as root may put it right while
    /// we run.
    pub fn open(settings: Settings, control: Shared) -> Result<Self, Problem> {
        let clock = Clock::new();
        let now = clock.now();
        let file = |name: &str| settings.folder.join(name);
        let users = settings.users_file.unwrap_or_else(|| file("users.yaml"));
        let access = Self(Arc::new(Inner {
            control,
            announce: settings.announce,
            hosts: hosts::Hosts::of_this_box(&settings.hosts),
            passwords: password::Passwords::new(),
            users: Mutex::new(users::Users::new(users)),
            tokens: Mutex::new(tokens::Tokens::open(file("tokens.yaml"))?),
            sessions: Mutex::new(sessions::Sessions::open(file("sessions.json"), now)),
            limits: Mutex::new(limits::Limits::open(file("limits.json"), now)),
            code: Mutex::new(claim::Code::new(file(CODE_FILE))),
            changes: watch::Sender::new(0),
            clock,
        }));
        // Without room for it there is none for now; whoever opens the page has it tried again.
        if matches!(access.claimed(), Ok(false))
            && let Err(problem) = access.announce_code()
        {
            tracing::error!("No code to claim this box with: {problem}");
        }
        Ok(access)
    }

    /// Somebody has claimed the box: there is a user who can log in.
    ///
    /// # Errors
    /// The file of users cannot be read, or is wrong.
    pub fn claimed(&self) -> Result<bool, Problem> {
        Ok(self.users().now()?.iter().any(|user| user.password.is_some()))
    }

    /// A login as it is now; none where it holds no more.
    fn renewed(&self, login: &Login) -> Option<Login> {
        let user = match &login.via {
            Via::Local => return Some(login.clone()),
            Via::Session(Session(secret)) => {
                let session = self.sessions().look(secret, self.now())?.clone();
                let user = self.users().find(&session.user).ok()??;
                (session.password.is(&entry::stamp(&user))).then_some(user)?
            }
            Via::Token(id) => {
                let token = self.tokens().by_id(id, self.now())?;
                let user = self.users().find(&token.user).ok()??;
                let actor = keys::actor(&token, &user, login.actor.from.clone());
                return Some(Login { actor, ..login.clone() });
            }
        };
        let actor = Actor { role: user.role, assign_devices: user.assign_devices, ..login.actor.clone() };
        Some(Login { actor, ..login.clone() })
    }

    /// Comes back when a login holds no more, or with other rights: what is streamed to him ends then.
    pub async fn ended(&self, login: &Login) {
        let mut changes = self.0.changes.subscribe();
        while let Some(until) = self.until(login) {
            let left = Duration::from_secs(until.saturating_sub(self.now()).clamp(1, 24 * 60 * 60));
            // Whichever comes first, it is looked at anew.
            let _ = tokio::time::timeout(left, changes.changed()).await;
        }
    }

    /// When a login that holds ends by itself.
    fn until(&self, login: &Login) -> Option<u64> {
        self.renewed(login).filter(|now| now.actor == login.actor)?;
        match &login.via {
            Via::Local => Some(u64::MAX),
            Via::Session(Session(secret)) => {
                self.sessions().look(secret, self.now()).map(sessions::Session::ends)
            }
            Via::Token(id) => self.tokens().by_id(id, self.now()).map(|token| token.expires),
        }
    }

    /// Whoever comes by the local socket: root may everything, and nobody else comes in.
    fn by_socket(&self, uid: Option<u32>) -> Result<Login, Problem> {
        if uid != Some(0) {
            return Err(Problem::forbidden("The local socket is for root; others log in or have a token"));
        }
        let actor = Actor {
            name: "uid 0".to_owned(),
            role: Role::Admin,
            assign_devices: true,
            from: "local".to_owned(),
            token: None,
        };
        Ok(Login { actor, csrf: String::new(), via: Via::Local })
    }

    fn hosts(&self) -> &hosts::Hosts {
        &self.0.hosts
    }

    fn now(&self) -> u64 {
        self.0.clock.now()
    }

    /// Something that may have ended a login.
    fn changed(&self) {
        self.0.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Does what is noted in the audit log first: where that takes no note, nothing is done.
    async fn noted<T>(
        &self,
        by: &Actor,
        what: &str,
        detail: String,
        does: impl FnOnce() -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.0.control.note(by, what.to_owned(), detail.clone()).await?;
        // Writing our small files takes a moment of this thread's; that they are written in order is worth it.
        let done = does();
        if let Err(problem) = &done {
            self.note(by, &format!("{what}: not done"), format!("{detail}: {}", problem.detail)).await;
        }
        done
    }

    /// Notes what is done already, or was refused.
    async fn note(&self, by: &Actor, what: &str, detail: String) {
        if let Err(problem) = self.0.control.note(by, what.to_owned(), detail).await {
            tracing::error!("The audit log took no note of {what:?}: {problem}");
        }
    }

    fn users(&self) -> MutexGuard<'_, users::Users> {
        self.0.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, tokens::Tokens> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, sessions::Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> MutexGuard<'_, limits::Limits> {
        self.0.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn code(&self) -> MutexGuard<'_, claim::Code> {
        self.0.code.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970. A test's stands still unless it is told to go on.
struct Clock {
    #[cfg(test)]
    at: std::sync::atomic::AtomicU64,
}

impl Clock {
    #[cfg(not(test))]
    fn new() -> Self {
        Self {}
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "a test's has something in it")]
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    #[cfg(test)]
    fn new() -> Self {
        Self { at: 1_800_000_000.into() }
    }

    #[cfg(test)]
    fn now(&self) -> u64 {
        self.at.load(std::sync::atomic::Ordering::Relaxed)
    }
}
