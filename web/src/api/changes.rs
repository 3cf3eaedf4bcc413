//! Changes of the host: made, confirmed, put back, and what became of each.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{At, By, Json, Said};
use super::host::Answered;
use crate::control::{Problem, Shared};
use crate::wire::Change;

/// What is to be applied.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    /// The tag of the file as it was looked at.
    tag: String,
}

/// A change that was begun.
#[derive(Serialize, ToSchema)]
pub(super) struct Begun {
    /// Its number.
    change: u64,
}

/// All changes, newest first.
#[utoipa::path(get, path = "/api/v1/changes", tag = "changes", responses(
    (status = 200, body = Vec<Change>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn all(State(control): State<Shared>, By(by): By) -> Answered<Vec<Change>> {
    control.changes(&by).await.map(Json)
}

/// One change.
#[utoipa::path(get, path = "/api/v1/changes/{id}", tag = "changes",
    params(("id" = u64, Path, description = "Its number")), responses(
    (status = 200, body = Change), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn one(State(control): State<Shared>, By(by): By, At(id): At<u64>) -> Answered<Change> {
    let found = control.changes(&by).await?.into_iter().find(|change| change.id == id);
    found.map(Json).ok_or_else(|| Problem::not_found(format!("There is no change {id}")))
}

/// Begins to make the host as the file with the tag says. `/api/v1/events` and the change tell how it goes on; where nothing is
/// to be done, it is the change that holds.
#[utoipa::path(post, path = "/api/v1/changes", tag = "changes", request_body = Apply,
    responses((status = 202, body = Begun),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "Another change is being made, or waits to be confirmed"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "The file is another one by now; nothing is done"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "It cannot be done: why, by line"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn apply(
    State(control): State<Shared>,
    By(by): By,
    Said(apply): Said<Apply>,
) -> Result<Response, Problem> {
    let change = control.apply(&by, apply.tag).await?;
    Ok((StatusCode::ACCEPTED, Json(Begun { change })).into_response())
}

/// Says that he who asked for a change still comes in: it holds.
#[utoipa::path(post, path = "/api/v1/changes/{id}/confirm", tag = "changes",
    params(("id" = u64, Path, description = "Its number")),
    responses((status = 204, description = "It holds"),
    (status = 403, body = Problem, content_type = "application/problem+json", description = "Somebody else asked for it"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "It does not wait to be confirmed"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn confirm(
    State(control): State<Shared>,
    By(by): By,
    At(id): At<u64>,
) -> Result<Response, Problem> {
    control.confirm(&by, id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Puts the last change back.
#[utoipa::path(post, path = "/api/v1/changes/rollback", tag = "changes", responses((status = 202, body = Begun),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "There is none, or another change is being made"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rollback(State(control): State<Shared>, By(by): By) -> Result<Response, Problem> {
    let change = control.rollback(&by).await?;
    Ok((StatusCode::ACCEPTED, Json(Begun { change })).into_response())
}
