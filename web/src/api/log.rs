//! What comes to logs, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;
use utoipa::IntoParams;

use super::answer::{Asked, At, By};
use super::events::ALIVE;
use super::guests::Which;
use super::host::{Lines, lines};
use crate::access::Until;
use crate::control::{Actor, Problem, Shared};
use crate::wire::LogNews;

/// How long nothing is looked at where nothing has come.
const PAUSE: Duration = Duration::from_secs(1);
/// Lines that are told at once.
const AT_ONCE: u32 = 1000;
/// A place that somebody says is no longer.
const LONGEST_PLACE: usize = 64;

/// Who follows a log: so many at once.
static PLACES: Semaphore = Semaphore::const_new(32);

/// Where to go on.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "for the description: it is read by hand")]
pub(super) struct From {
    /// The `id` of the last event that came: what has come since is told, and nothing twice.
    #[serde(rename = "Last-Event-ID")]
    #[param(required = false, max_length = 64)]
    last_event_id: String,
}

/// One log that somebody follows.
struct Followed {
    control: Shared,
    by: Actor,
    guest: Option<String>,
    console: bool,
    place: String,
    _seat: SemaphorePermit<'static>,
}

/// The last lines of the daemon's log, and those that come (`text/event-stream`): events `lines`, whose `id` says how far they go.
#[utoipa::path(get, path = "/api/v1/log/events", tag = "events", params(Lines, From), responses(
    (status = 200, body = String, content_type = "text/event-stream", description = "The data of each is a `LogNews`"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn of_the_box(
    State(control): State<Shared>,
    By(by): By,
    until: Until,
    head: HeaderMap,
    Asked(asked): Asked<Lines>,
) -> Result<impl IntoResponse, Problem> {
    follow(control, by, until, head, (None, false), lines(asked.lines)?).await
}

/// The same of a guest's log, or its console's.
#[utoipa::path(get, path = "/api/v1/guests/{name}/log/events", tag = "events",
    params(("name" = String, Path, description = "Its name"), Which, From), responses(
    (status = 200, body = String, content_type = "text/event-stream", description = "The data of each is a `LogNews`"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn of_a_guest(
    State(control): State<Shared>,
    By(by): By,
    until: Until,
    head: HeaderMap,
    At(name): At<String>,
    Asked(which): Asked<Which>,
) -> Result<impl IntoResponse, Problem> {
    follow(control, by, until, head, (Some(name), which.console), lines(which.lines)?).await
}

async fn follow(
    control: Shared,
    by: Actor,
    Until(ended): Until,
    head: HeaderMap,
    (guest, console): (Option<String>, bool),
    lines: u32,
) -> Result<impl IntoResponse, Problem> {
    let place = head.get("last-event-id").map_or(Ok(""), |place| place.to_str());
    let place = place.ok().filter(|place| place.len() <= LONGEST_PLACE);
    let place = place.ok_or_else(|| Problem::malformed("Last-Event-ID is the id of an event of this log"))?;
    let _seat = PLACES.try_acquire().map_err(|_| {
        Problem::unavailable(
            "Too many follow a log at this moment; close a page that does, or try again later",
        )
    })?;
    // What is wrong with the question is said as an answer.
    let first = control.log_since(&by, guest.clone(), console, place.to_owned(), lines).await?;
    let followed = Followed { control, by, guest, console, place: first.place.clone(), _seat };
    // Also where there is no line yet: who waits for the first event knows that he is heard.
    let events = stream::iter([sent(&first)]).chain(stream::unfold(followed, next)).map(Ok::<_, Infallible>);
    Ok(Sse::new(events.take_until(ended)).keep_alive(KeepAlive::new().interval(ALIVE)))
}

/// The next lines, once there are some; none at the end, after which a browser comes again by itself.
async fn next(mut followed: Followed) -> Option<(Sent, Followed)> {
    loop {
        let Followed { control, by, guest, console, place, .. } = &followed;
        let news = control.log_since(by, guest.clone(), *console, place.clone(), AT_ONCE).await.ok()?;
        followed.place.clone_from(&news.place);
        if !news.lines.is_empty() || news.missed {
            return Some((sent(&news), followed));
        }
        sleep(PAUSE).await;
    }
}

fn sent(news: &LogNews) -> Sent {
    // JSON has no line ends outside of its strings, and those are escaped; a place is ours.
    let data = serde_json::to_string(news).unwrap_or_default();
    Sent::default().event("lines").id(news.place.replace(['\n', '\r', '\0'], "")).data(data)
}
