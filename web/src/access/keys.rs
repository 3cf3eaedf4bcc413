//! What people do with tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Access;
use super::limits;
use super::tokens::{MOST_DAYS, PREFIX, Token};
use super::users::Entry;
use super::visitor::{Login, Via, neighbourhood, place};
use crate::control::{Actor, Problem, Right, Role};
use crate::server::Peer;

/// A token to make, of oneself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewToken {
    /// What it is for, in 1 to 64 characters.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it may do: no more than oneself.
    pub role: Role,
    /// It may give devices of the host to guests: where oneself may.
    #[serde(default)]
    pub assign_devices: bool,
    /// After how many days it ends: 1 to 366.
    #[serde(default = "quarter")]
    #[schema(minimum = 1, maximum = 366)]
    pub days: u32,
}

fn quarter() -> u32 {
    90
}

/// A token that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct MadeToken {
    /// What it is.
    pub token: Token,
    /// What is sent as `Authorization: Bearer`. It is told this once.
    pub secret: String,
}

/// Whom a token stands for: it may what both it and its user may.
pub(super) fn actor(token: &Token, user: &Entry, from: String) -> Actor {
    Actor {
        name: user.name.clone(),
        role: token.role.min(user.role),
        assign_devices: token.assign_devices && user.assign_devices,
        from,
        token: Some(token.name.clone()),
    }
}

impl Access {
    /// One's own tokens; for an administrator, everybody's.
    pub fn list_tokens(&self, by: &Login) -> Vec<Token> {
        let all = by.actor.may(Right::Administer);
        let now = self.now();
        let tokens = self.tokens();
        let shown = tokens.now(now).map(super::tokens::Kept::shown);
        shown.filter(|token| all || token.user == by.actor.name).collect()
    }

    /// Makes a token of one's own.
    ///
    /// # Errors
    /// He comes with a token or by the local socket himself, it would may more than he, its name or its time will not do, or
    /// it cannot be written.
    pub async fn add_token(&self, by: &Login, new: NewToken) -> Result<MadeToken, Problem> {
        by.is_no_token()?;
        if by.via == Via::Local {
            return Err(Problem::conflict("A token is a user's: log in to make one"));
        }
        let name = new.name.trim();
        if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            return Err(Problem::malformed("A token's name has 1 to 64 characters"));
        }
        if !(1..=MOST_DAYS).contains(&new.days) {
            return Err(Problem::malformed(format!("A token is good for 1 to {MOST_DAYS} days")));
        }
        if new.role > by.actor.role {
            return Err(Problem::forbidden("A token may not do more than who makes it"));
        }
        by.gives(new.assign_devices)?;
        let now = self.now();
        let like = Token {
            id: String::new(),
            name: name.to_owned(),
            user: by.actor.name.clone(),
            role: new.role,
            assign_devices: new.assign_devices,
            created: now,
            expires: now.saturating_add(u64::from(new.days) * 24 * 60 * 60),
        };
        let detail = format!(
            "{:?} for {} days, role {:?}{}",
            like.name,
            new.days,
            like.role,
            if like.assign_devices { ", may assign devices" } else { "" }
        );
        let (secret, token) =
            self.noted(&by.actor, "Make a token", detail, || self.tokens().add(like)).await?;
        Ok(MadeToken { token, secret })
    }

    /// Removes a token: one's own, or as an administrator anybody's.
    ///
    /// # Errors
    /// There is none, it is another's, he comes with a token himself, or it cannot be written.
    pub async fn remove_token(&self, by: &Login, id: &str) -> Result<(), Problem> {
        by.is_no_token()?;
        let token = self.tokens().by_id(id, self.now());
        // Another's is as good as none: its id is nobody's business.
        let token = token
            .filter(|token| token.user == by.actor.name || by.actor.may(Right::Administer))
            .ok_or_else(|| Problem::not_found(format!("There is no token {id:?}")))?;
        let detail = format!("{:?} of {}", token.name, token.user);
        self.noted(&by.actor, "Remove a token", detail, || {
            self.tokens().remove(|one| one.id == token.id, self.now())
        })
        .await?;
        self.changed();
        Ok(())
    }

    /// Whom the token stands for that somebody sends.
    pub(super) fn by_token(&self, peer: Peer, secret: &str) -> Result<Login, Problem> {
        let token = if secret.starts_with(PREFIX) { self.tokens().find(secret, self.now()) } else { None };
        if let Some(token) = token
            && let Some(user) = self.users().find(&token.user)?
        {
            let actor = actor(&token, &user, place(peer));
            return Ok(Login { actor, csrf: String::new(), via: Via::Token(token.id) });
        }
        // Apart from logins: a program that goes on with an old token keeps nobody out who sits beside it.
        self.take(&[(format!("tokens {}", neighbourhood(peer)), limits::ADDRESS)])?;
        Err(Problem::unknown("That token is wrong, was removed, or is too old"))
    }
}
