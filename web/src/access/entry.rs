//! Coming in and going out: the claim, logins, one's own password.

use super::limits::{self, Rate};
use super::secret::Digest;
use super::users::{self, Entry};
use super::visitor::{Login, Session, Via, neighbourhood, place};
use super::{Access, SetCookie};
use crate::control::{Actor, Problem, Role};
use crate::server::Peer;

/// What a session is bound to: another password ends it.
pub(super) fn stamp(user: &Entry) -> Digest {
    Digest::of(user.password.as_deref().unwrap_or(""))
}

impl Access {
    /// Makes somebody an administrator who knows the code that was printed: the first one of a box, or root who has lost his
    /// password. A user of that name keeps it and gets the new password; his sessions end, and he is logged in.
    ///
    /// # Errors
    /// The code is wrong or too old, the name or the password will not do, he was wrong too often, or it cannot be written.
    pub async fn claim(
        &self,
        peer: Peer,
        code: &str,
        name: &str,
        password: String,
    ) -> Result<(Login, SetCookie), Problem> {
        if !users::is_name(name) {
            return Err(bad_name());
        }
        let tries = [(format!("address {}", neighbourhood(peer)), limits::ADDRESS)];
        self.take(&tries)?;
        let who = Actor { role: Role::Admin, assign_devices: true, ..stranger(name, peer) };
        let checked = self.code().check(code, self.now());
        if let Err(problem) = checked {
            self.note(&stranger(name, peer), "Claim refused", problem.detail.clone()).await;
            return Err(problem);
        }
        self.give_back(&tries);
        let hash = self.0.passwords.hash(name, password).await?;
        let now = self.now();
        let user = self
            .noted(&who, "Claim the box", format!("user {name}, role admin, may assign devices"), || {
                // Once more, and held: of two who have the same code one comes in.
                let mut held = self.code();
                held.check(code, now)?;
                let user = self.users().change(|all| {
                    let created =
                        all.iter().find(|user| user.name == name).map_or(Some(now), |user| user.created);
                    all.retain(|user| user.name != name);
                    let user = Entry {
                        name: name.to_owned(),
                        role: Role::Admin,
                        assign_devices: true,
                        password: Some(hash),
                        created,
                    };
                    all.push(user.clone());
                    Ok(user)
                })?;
                held.spend()?;
                Ok(user)
            })
            .await?;
        self.end_sessions_of(name);
        self.limits().remember(&acquaintance(peer, name), now);
        self.begin(peer, &user)
    }

    /// Logs somebody in with his password.
    ///
    /// # Errors
    /// The name or the password is wrong, which is not told apart; he, or somebody where he is, was wrong too often; or there
    /// is too much to do.
    pub async fn login(
        &self,
        peer: Peer,
        name: &str,
        password: String,
    ) -> Result<(Login, SetCookie), Problem> {
        let tries = self.tries(peer, name);
        self.take(&tries)?;
        let user = if users::is_name(name) { self.users().find(name) } else { Ok(None) };
        let user = user.inspect_err(|_| self.give_back(&tries))?;
        let hash = user.as_ref().and_then(|user| user.password.clone());
        let right = self.0.passwords.is(hash, password).await.inspect_err(|_| self.give_back(&tries))?;
        let (true, Some(user)) = (right, user) else {
            self.note(&stranger(name, peer), "Login refused", "wrong name or password".to_owned()).await;
            return Err(Problem::unknown("The name or the password is wrong"));
        };
        self.give_back(&tries);
        self.limits().remember(&acquaintance(peer, name), self.now());
        let actor =
            Actor { role: user.role, assign_devices: user.assign_devices, ..stranger(&user.name, peer) };
        self.noted(&actor, "Log in", String::new(), || Ok(())).await?;
        self.begin(peer, &user)
    }

    /// Logs somebody out: his session ends, here and in his browser. A token or the local socket cannot.
    ///
    /// # Errors
    /// It is no session.
    pub async fn logout(&self, peer: Peer, by: &Login) -> Result<SetCookie, Problem> {
        let Via::Session(Session(secret)) = &by.via else {
            return Err(Problem::conflict("Only who has logged in with a password can log out"));
        };
        self.sessions().end(|key, _| key.is(secret), self.now());
        self.changed();
        self.note(&by.actor, "Log out", String::new()).await;
        SetCookie::gone(peer).ok_or_else(|| Problem::fault("Cannot make a cookie"))
    }

    /// Changes one's own password. One's other sessions end, this one goes on under a new secret.
    ///
    /// # Errors
    /// The old one is wrong, the new one will not do, it is no session, or it cannot be written.
    pub async fn change_password(
        &self,
        peer: Peer,
        by: &Login,
        old: String,
        new: String,
    ) -> Result<(Login, SetCookie), Problem> {
        let Via::Session(_) = &by.via else {
            return Err(Problem::conflict("Only who has logged in with a password has one to change"));
        };
        let name = &by.actor.name;
        let tries = self.tries(peer, name);
        self.take(&tries)?;
        let before = self.users().find(name).inspect_err(|_| self.give_back(&tries))?;
        let hash = before.and_then(|user| user.password);
        let right = self.0.passwords.is(hash.clone(), old).await.inspect_err(|_| self.give_back(&tries))?;
        if !right {
            self.note(&by.actor, "Change of own password refused", "wrong password".to_owned()).await;
            return Err(Problem::forbidden("The old password is wrong"));
        }
        self.give_back(&tries);
        let new = self.0.passwords.hash(name, new).await?;
        let user = self
            .noted(&by.actor, "Change own password", format!("user {name}"), || {
                self.users().change(|all| {
                    let user = all.iter_mut().find(|user| user.name == *name && user.password == hash);
                    let user =
                        user.ok_or_else(|| Problem::conflict("Somebody else changed this user meanwhile"))?;
                    user.password = Some(new);
                    Ok(user.clone())
                })
            })
            .await?;
        self.end_sessions_of(name);
        self.begin(peer, &user)
    }

    /// Makes a code and announces it where nobody has claimed the box and no code is good any more: whoever stands before
    /// the page of a box that was switched on yesterday finds one on its console.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn offer_code(&self) -> Result<(), Problem> {
        if self.claimed()? || self.code().stands(self.now())? {
            return Ok(());
        }
        self.announce_code()
    }

    pub(super) fn announce_code(&self) -> Result<(), Problem> {
        let code = self.code().renew(self.now())?;
        (self.0.announce)(&code);
        Ok(())
    }

    /// Who a cookie's secret stands for; with `counts` the session was used by that.
    pub(super) fn by_session(
        &self,
        peer: Peer,
        secret: &str,
        counts: bool,
    ) -> Result<Option<Login>, Problem> {
        let (digest, now) = (Digest::of(secret), self.now());
        let session = {
            let mut sessions = self.sessions();
            if counts { sessions.used(&digest, now) } else { sessions.look(&digest, now).cloned() }
        };
        let Some(session) = session else { return Ok(None) };
        let Some(user) = self.users().find(&session.user)? else { return Ok(None) };
        if !session.password.is(&stamp(&user)) {
            return Ok(None);
        }
        Ok(Some(login(peer, &user, secret)))
    }

    /// Ends all sessions of a user.
    pub(super) fn end_sessions_of(&self, name: &str) {
        self.sessions().end(|_, session| session.user == name, self.now());
        self.changed();
    }

    /// Takes a try, where there is one left, and sees to it that the disk knows in a second.
    pub(super) fn take(&self, tries: &[(String, Rate)]) -> Result<(), Problem> {
        let taken = self.limits().take(tries, self.now());
        self.write_limits_soon();
        taken.map_err(|wait| {
            Problem::too_often(format!("Wrong too often; try again in {}", in_words(wait)), wait)
        })
    }

    pub(super) fn give_back(&self, tries: &[(String, Rate)]) {
        self.limits().give_back(tries, self.now());
        self.write_limits_soon();
    }

    fn write_limits_soon(&self) {
        if !self.limits().promise() {
            return;
        }
        let access = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limits::SOON).await;
            let now = access.now();
            access.limits().write(now);
        });
    }

    /// By address and by user; but whoever has logged in from this place before has tries of his own there, so that
    /// strangers do not lock him out.
    fn tries(&self, peer: Peer, name: &str) -> Vec<(String, Rate)> {
        let known = acquaintance(peer, name);
        if self.limits().remembers(&known) {
            return vec![(known, limits::USER)];
        }
        let user = if users::is_name(name) { name } else { "?" };
        vec![
            (format!("address {}", neighbourhood(peer)), limits::ADDRESS),
            (format!("user {user}"), limits::USER),
        ]
    }

    fn begin(&self, peer: Peer, user: &Entry) -> Result<(Login, SetCookie), Problem> {
        let secret = self.sessions().begin(&user.name, stamp(user), self.now())?;
        let cookie = SetCookie::new(peer, &secret).ok_or_else(|| Problem::fault("Cannot make a cookie"))?;
        Ok((login(peer, user, &secret), cookie))
    }
}

/// A session's login. Its CSRF token follows from its secret, so that nothing more is to be kept.
fn login(peer: Peer, user: &Entry, secret: &str) -> Login {
    Login {
        actor: Actor {
            name: user.name.clone(),
            role: user.role,
            assign_devices: user.assign_devices,
            from: place(peer),
            token: None,
        },
        csrf: Digest::of(&format!("throughway csrf {secret}")).text().to_owned(),
        via: Via::Session(Session(Digest::of(secret))),
    }
}

/// Somebody of whom nothing is proven.
pub(super) fn stranger(name: &str, peer: Peer) -> Actor {
    // What somebody types as his name may be his password.
    let name = if users::is_name(name) { name } else { "?" };
    Actor { name: name.to_owned(), role: Role::Viewer, assign_devices: false, from: place(peer), token: None }
}

pub(super) fn bad_name() -> Problem {
    Problem::malformed("A name is made of 1 to 32 small letters, digits, dots, dashes and underlines")
}

fn acquaintance(peer: Peer, name: &str) -> String {
    format!("user {} from {}", if users::is_name(name) { name } else { "?" }, neighbourhood(peer))
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0..=1 => "a second".to_owned(),
        2..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}
