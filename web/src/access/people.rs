//! What administrators do with users.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Access;
use super::entry::bad_name;
use super::users::{self, Entry, User};
use super::visitor::{Login, Via};
use crate::control::{Problem, Right, Role};

/// A user to add.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewUser {
    /// What he will log in with: 1 to 32 small letters, digits, dots, dashes and underlines.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,31}$")]
    pub name: String,
    /// What he may do in general.
    pub role: Role,
    /// He may give devices of the host to guests.
    #[serde(default)]
    pub assign_devices: bool,
    /// His first password, of 10 characters or more.
    #[schema(format = "password", min_length = 10, max_length = 256)]
    pub password: String,
}

/// What is to become of a user; what is not said stays.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UserChange {
    /// What he may do in general.
    #[serde(default)]
    pub role: Option<Role>,
    /// He may give devices of the host to guests.
    #[serde(default)]
    pub assign_devices: Option<bool>,
    /// A new password: his sessions end.
    #[serde(default)]
    #[schema(format = "password", min_length = 10, max_length = 256)]
    pub password: Option<String>,
}

impl Access {
    /// All users.
    ///
    /// # Errors
    /// He may not see them, or the file is wrong.
    pub fn list_users(&self, by: &Login) -> Result<Vec<User>, Problem> {
        by.must(Right::Administer)?;
        Ok(self.users().now()?.iter().map(Entry::shown).collect())
    }

    /// Adds a user.
    ///
    /// # Errors
    /// He may not, there is one of that name, the name or the password will not do, or it cannot be written.
    pub async fn add_user(&self, by: &Login, new: NewUser) -> Result<User, Problem> {
        by.manages_people()?;
        by.gives(new.assign_devices)?;
        if !users::is_name(&new.name) {
            return Err(bad_name());
        }
        let entry = Entry {
            password: Some(self.0.passwords.hash(&new.name, new.password).await?),
            name: new.name,
            role: new.role,
            assign_devices: new.assign_devices,
            created: Some(self.now()),
        };
        self.noted(&by.actor, "Add a user", described(&entry), || {
            self.users().change(|all| {
                if all.iter().any(|user| user.name == entry.name) {
                    return Err(Problem::conflict(format!("There is a user {} already", entry.name)));
                }
                all.push(entry.clone());
                Ok(entry.shown())
            })
        })
        .await
    }

    /// Changes a user.
    ///
    /// # Errors
    /// He may not, there is none of that name, nobody would be left to administer the box, or it cannot be written.
    pub async fn change_user(&self, by: &Login, name: &str, change: UserChange) -> Result<User, Problem> {
        by.manages_people()?;
        let before = self.find_user(name)?;
        by.gives(before.assign_devices || change.assign_devices == Some(true))?;
        if change.password.is_some() && matches!(by.via, Via::Session(_)) && by.actor.name == name {
            return Err(Problem::conflict("One's own password is changed by saying the old one"));
        }
        let mut after = before.clone();
        after.role = change.role.unwrap_or(before.role);
        after.assign_devices = change.assign_devices.unwrap_or(before.assign_devices);
        let password = change.password.is_some();
        if let Some(password) = change.password {
            after.password = Some(self.0.passwords.hash(name, password).await?);
        }
        let detail = format!(
            "{} -> {}{}",
            described(&before),
            described(&after),
            if password { ", another password" } else { "" }
        );
        let user = self
            .noted(&by.actor, "Change a user", detail, || {
                self.users().change(|all| {
                    let user = all.iter_mut().find(|user| **user == before);
                    *user.ok_or_else(|| changed_meanwhile(name))? = after.clone();
                    somebody_administers(all)?;
                    Ok(after.shown())
                })
            })
            .await?;
        if password {
            self.end_sessions_of(name);
        }
        self.changed();
        Ok(user)
    }

    /// Removes a user, with his sessions and tokens.
    ///
    /// # Errors
    /// He may not, there is none of that name, nobody would be left to administer the box, or it cannot be written.
    pub async fn remove_user(&self, by: &Login, name: &str) -> Result<(), Problem> {
        by.manages_people()?;
        let before = self.find_user(name)?;
        by.gives(before.assign_devices)?;
        self.noted(&by.actor, "Remove a user", described(&before), || {
            // Tokens first: one of a user that is gone must not be there when another of that name comes.
            self.users().change(|all| {
                let there = all.len();
                all.retain(|user| *user != before);
                if all.len() == there {
                    return Err(changed_meanwhile(name));
                }
                somebody_administers(all)?;
                self.tokens().remove(|token| token.user == name, self.now())
            })
        })
        .await?;
        self.end_sessions_of(name);
        Ok(())
    }

    fn find_user(&self, name: &str) -> Result<Entry, Problem> {
        self.users().find(name)?.ok_or_else(|| Problem::not_found(format!("There is no user {name:?}")))
    }
}

impl Login {
    /// People are changed by people: a token that was stolen must not make itself a user or another token.
    pub(super) fn manages_people(&self) -> Result<(), Problem> {
        self.must(Right::Administer)?;
        self.is_no_token()
    }

    pub(super) fn is_no_token(&self) -> Result<(), Problem> {
        match self.via {
            Via::Token(_) => {
                Err(Problem::forbidden("A token changes no users and makes no tokens: log in for that"))
            }
            Via::Session(_) | Via::Local => Ok(()),
        }
    }

    /// Nobody gives, or takes over with another's password, a right that he has not himself.
    pub(super) fn gives(&self, assign_devices: bool) -> Result<(), Problem> {
        if assign_devices && !self.actor.may(Right::AssignDevices) {
            return Err(Problem::forbidden(
                "Who has the right to assign devices is changed by somebody who has it himself",
            ));
        }
        Ok(())
    }
}

fn described(user: &Entry) -> String {
    let role = match user.role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    };
    let devices = if user.assign_devices { ", may assign devices" } else { "" };
    format!("user {}, role {role}{devices}", user.name)
}

fn changed_meanwhile(name: &str) -> Problem {
    Problem::conflict(format!("Somebody else changed the user {name} meanwhile; look again"))
}

fn somebody_administers(all: &[Entry]) -> Result<(), Problem> {
    if all.iter().any(|user| user.role == Role::Admin && user.password.is_some()) {
        return Ok(());
    }
    Err(Problem::conflict("Nobody would be left who can log in and administer this box"))
}
