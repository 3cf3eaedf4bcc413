//! Guests.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Asked, At, By, Json};
use super::host::{Answered, lines};
use crate::control::{Problem, Shared, Verb};
use crate::wire::{Guest, GuestStats, Log};

/// All guests.
#[utoipa::path(get, path = "/api/v1/guests", tag = "guests", responses(
    (status = 200, body = Vec<Guest>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn all(State(control): State<Shared>, By(by): By) -> Answered<Vec<Guest>> {
    control.guests(&by).await.map(Json)
}

/// One guest.
#[utoipa::path(get, path = "/api/v1/guests/{name}", tag = "guests",
    params(("name" = String, Path, description = "Its name")), responses(
    (status = 200, body = Guest), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn one(State(control): State<Shared>, By(by): By, At(name): At<String>) -> Answered<Guest> {
    let found = control.guests(&by).await?.into_iter().find(|guest| guest.name == name);
    found.map(Json).ok_or_else(|| Problem::not_found(format!("There is no guest `{name}`")))
}

/// What a guest that runs has counted.
#[utoipa::path(get, path = "/api/v1/guests/{name}/stats", tag = "guests",
    params(("name" = String, Path, description = "Its name")), responses(
    (status = 200, body = GuestStats), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stats(
    State(control): State<Shared>,
    By(by): By,
    At(name): At<String>,
) -> Answered<GuestStats> {
    control.guest_stats(&by, name).await.map(Json)
}

/// Which log of a guest.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Its console's, not that of its process.
    #[serde(default)]
    #[param(required = false)]
    console: bool,
    /// The last so many lines: 200 where it is not said, and 5000 at most.
    #[param(minimum = 1, maximum = 5000)]
    lines: Option<u32>,
}

/// The end of a guest's log.
#[utoipa::path(get, path = "/api/v1/guests/{name}/log", tag = "guests",
    params(("name" = String, Path, description = "Its name"), Which), responses(
    (status = 200, body = Log), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn log(
    State(control): State<Shared>,
    By(by): By,
    At(name): At<String>,
    Asked(which): Asked<Which>,
) -> Answered<Log> {
    control.log(&by, Some(name), which.console, lines(which.lines)?).await.map(Json)
}

/// Does something to a guest.
#[utoipa::path(post, path = "/api/v1/guests/{name}/{verb}", tag = "guests", params(
    ("name" = String, Path, description = "Its name"), ("verb" = Verb, Path, description = "What is done")),
    responses((status = 204, description = "It is done, or begun: the guest's state tells"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn act(
    State(control): State<Shared>,
    By(by): By,
    At((name, verb)): At<(String, Verb)>,
) -> Result<Response, Problem> {
    control.act(&by, name, verb).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
