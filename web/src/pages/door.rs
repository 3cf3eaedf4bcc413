//! The door: logging in and out, and claiming a box that nobody has.

use askama::Template;
use axum::extract::{FromRequestParts, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::page::{Failure, render};
use super::visit::{inside, liking};
use super::{Page, Pages, Posted};
use crate::access::{self, Access, OpenForm};
use crate::control::Problem;

#[derive(Template)]
#[template(path = "door.html")]
struct DoorTemplate {
    page: Page,
    /// The box is claimed here, and not logged in to.
    claim: bool,
    next: String,
    name: String,
    problem: Option<Problem>,
}

/// How somebody likes the page who has not logged in.
pub(super) struct Stranger(Page);

impl FromRequestParts<Pages> for Stranger {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Pages) -> Result<Self, Self::Rejection> {
        let (language, theme) = liking(parts);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self(Page::new(language, theme, path)))
    }
}

/// Where he came from.
#[derive(Deserialize)]
pub(super) struct Came {
    back: Option<String>,
}

/// The form to log in.
pub(super) async fn login(
    access: Access,
    Query(query): Query<Came>,
    Stranger(page): Stranger,
) -> Result<Response, Failure> {
    match access.claimed() {
        Ok(true) => {}
        Ok(false) => return Ok(Redirect::to("/claim").into_response()),
        Err(problem) => return Err(Failure::new(page, problem)),
    }
    let next = inside(query.back.as_deref().unwrap_or("/"));
    Ok(render(StatusCode::OK, &DoorTemplate { page, claim: false, next, name: String::new(), problem: None }))
}

/// The form to claim the box: also for root who has lost his password.
pub(super) async fn claim(Stranger(page): Stranger) -> Response {
    let next = "/".to_owned();
    render(StatusCode::OK, &DoorTemplate { page, claim: true, next, name: String::new(), problem: None })
}

/// Either form.
#[derive(Deserialize)]
pub(super) struct Key {
    #[serde(default)]
    code: String,
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

/// Opens the door, or says why not.
pub(super) async fn open(
    State(pages): State<Pages>,
    access: Access,
    Stranger(page): Stranger,
    request: Request,
) -> Response {
    let claim = request.uri().path() == "/claim";
    let form = <OpenForm<Key> as axum::extract::FromRequest<Pages>>::from_request(request, &pages).await;
    let OpenForm { visit, data } = match form {
        Ok(form) => form,
        Err(refusal) => return Failure::new(page, refusal.problem().clone()).into_response(),
    };
    let opened = if claim {
        access.claim(visit.peer, data.code.trim(), data.name.trim(), data.password).await
    } else {
        access.login(visit.peer, data.name.trim(), data.password).await
    };
    match opened {
        Ok((_, cookie)) => (cookie, Redirect::to(&inside(&data.next))).into_response(),
        Err(problem) => {
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::FORBIDDEN);
            let template =
                DoorTemplate { page, claim, next: data.next, name: data.name, problem: Some(problem) };
            render(status, &template)
        }
    }
}

/// Leaves.
pub(super) async fn leave(access: Access, visit: access::Visit, posted: Posted) -> Result<Response, Failure> {
    match access.logout(visit.peer, &posted.visit.login).await {
        Ok(cookie) => Ok((cookie, Redirect::to("/login")).into_response()),
        Err(problem) => Err(posted.failed(problem)),
    }
}
