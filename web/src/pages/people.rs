//! Users and tokens: who may come in, and what each may do.

use std::borrow::Borrow;

use askama::Template;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::page::{Failure, render};
use super::{Page, Posted, Visit, words};
use crate::access::{self, Access, MadeToken, NewToken, NewUser, Token, User, UserChange, Via};
use crate::control::{Problem, Role};

#[derive(Template)]
#[template(path = "people.html")]
struct PeopleTemplate {
    page: Page,
    /// None for one who may not see them.
    users: Option<Vec<User>>,
    tokens: Vec<Token>,
    made: Option<MadeToken>,
    name: String,
    /// He has a password to change.
    session: bool,
}

/// Roles by their names in forms.
const ROLES: [(&str, Role); 3] =
    [("viewer", Role::Viewer), ("operator", Role::Operator), ("admin", Role::Admin)];

fn role(name: &str) -> Result<Role, Problem> {
    let found = ROLES.iter().find(|(key, _)| *key == name).map(|(_, role)| *role);
    found.ok_or_else(|| Problem::malformed(format!("There is no role `{name}`")))
}

/// A choice of roles. `id` is a word of ours.
fn roles_select(page: &Page, id: impl AsRef<str>, now: impl Borrow<Role>) -> String {
    let option = |(key, role): &(&str, Role)| {
        let chosen = if role == now.borrow() { " selected" } else { "" };
        format!("<option value=\"{key}\"{chosen}>{}</option>", page.w.role(*role))
    };
    let options: String = ROLES.iter().map(option).collect();
    format!("<select name=\"role\" id=\"{}\" class=\"short\">{options}</select>", id.as_ref())
}

/// `role-3`.
fn numbered(word: &str, number: impl Borrow<usize>) -> String {
    format!("{word}-{}", number.borrow())
}

fn shown(access: &Access, visit: Visit, made: Option<MadeToken>) -> Result<Response, Failure> {
    let login = &visit.login;
    let users = if visit.page.administers() {
        match access.list_users(login) {
            Ok(users) => Some(users),
            Err(problem) => return Err(visit.failed(problem)),
        }
    } else {
        None
    };
    let tokens = access.list_tokens(login);
    let (name, session) = (login.actor.name.clone(), matches!(login.via, Via::Session(_)));
    let status = if made.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let mut page = visit.page;
    page.path = "/people".into();
    Ok(render(status, &PeopleTemplate { page, users, tokens, made, name, session }))
}

/// All of them.
pub(super) async fn show(access: Access, visit: Visit) -> Result<Response, Failure> {
    shown(&access, visit, None)
}

fn done(what: &str, name: &str) -> Response {
    let query = serde_urlencoded::to_string([("done", what), ("what", name)]).unwrap_or_default();
    Redirect::to(&format!("/people?{query}")).into_response()
}

/// A new user.
pub(super) async fn add_user(access: Access, posted: Posted) -> Result<Response, Failure> {
    let added = async {
        let new = NewUser {
            name: posted.get("name").trim().to_owned(),
            role: role(posted.get("role"))?,
            assign_devices: posted.get("assign") == "yes",
            password: posted.get("password").to_owned(),
        };
        access.add_user(&posted.visit.login, new).await
    };
    match added.await {
        Ok(user) => Ok(done("added", &user.name)),
        Err(problem) => Err(posted.failed(problem)),
    }
}

/// Another role, right or password of a user; or his end.
pub(super) async fn change_user(
    access: Access,
    Path(name): Path<String>,
    posted: Posted,
) -> Result<Response, Failure> {
    let by = &posted.visit.login;
    let changed = async {
        if posted.get("do") == "remove" {
            return access.remove_user(by, &name).await.map(|()| "removed");
        }
        let password = Some(posted.get("password").to_owned()).filter(|password| !password.is_empty());
        let change = UserChange {
            role: Some(role(posted.get("role"))?),
            assign_devices: Some(posted.get("assign") == "yes"),
            password,
        };
        access.change_user(by, &name, change).await.map(|_| "changed")
    };
    match changed.await {
        Ok(what) => Ok(done(what, &name)),
        Err(problem) => Err(posted.failed(problem)),
    }
}

/// Another password of one's own.
pub(super) async fn change_password(
    access: Access,
    visit: access::Visit,
    posted: Posted,
) -> Result<Response, Failure> {
    let (old, new) = (posted.get("old").to_owned(), posted.get("new").to_owned());
    match access.change_password(visit.peer, &posted.visit.login, old, new).await {
        Ok((_, cookie)) => Ok((cookie, done("password", "")).into_response()),
        Err(problem) => Err(posted.failed(problem)),
    }
}

/// A new token, whose secret is shown this once.
pub(super) async fn add_token(access: Access, posted: Posted) -> Result<Response, Failure> {
    let made = async {
        let days = posted.get("days").trim().parse();
        let days = days.map_err(|_| Problem::malformed("The days of a token are a whole number"))?;
        let new = NewToken {
            name: posted.get("name").to_owned(),
            role: role(posted.get("role"))?,
            assign_devices: posted.get("assign") == "yes",
            days,
        };
        access.add_token(&posted.visit.login, new).await
    };
    match made.await {
        Ok(made) => shown(&access, posted.visit, Some(made)),
        Err(problem) => Err(posted.failed(problem)),
    }
}

/// The end of a token.
pub(super) async fn remove_token(access: Access, posted: Posted) -> Result<Response, Failure> {
    let (id, name) = (posted.get("id").to_owned(), posted.get("name").to_owned());
    match access.remove_token(&posted.visit.login, &id).await {
        Ok(()) => Ok(done("removed", &name)),
        Err(problem) => Err(posted.failed(problem)),
    }
}
