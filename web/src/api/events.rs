//! What happens, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::{StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;

use super::answer::By;
use crate::access::Until;
use crate::control::{Problem, Right, Shared};
use crate::wire::Event;

/// A connection over which nothing goes is one that somebody on the way gives up.
const ALIVE: Duration = Duration::from_secs(25);

/// What happens from now on (`text/event-stream`): `guest`, `guest-gone`, `change`, `progress`, `config`; and `missed`, with a
/// number, where the reader was too slow: then all is to be asked for anew.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", responses(
    (status = 200, body = String, content_type = "text/event-stream", description = "The data of each is that of `Event`"),
    (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn listen(
    State(control): State<Shared>,
    By(by): By,
    Until(ended): Until,
) -> Result<impl IntoResponse, Problem> {
    if !by.may(Right::View) {
        return Err(Problem::forbidden("Events may not be seen by this login"));
    }
    let events = stream::unfold(control.events(), |mut from| async move {
        let sent = match from.recv().await {
            Ok(event) => sent(&event),
            Err(RecvError::Lagged(count)) => Sent::default().event("missed").data(count.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(sent), from))
    });
    Ok(Sse::new(events.take_until(ended)).keep_alive(KeepAlive::new().interval(ALIVE)))
}

fn sent(event: &Event) -> Sent {
    let mut whole = serde_json::to_value(event).unwrap_or_default();
    let name = whole.get("event").and_then(|name| name.as_str()).unwrap_or("unknown").to_owned();
    let data = whole.get_mut("data").map(serde_json::Value::take).unwrap_or_default();
    // JSON has no line ends outside of its strings, and those are escaped.
    Sent::default().event(name).data(data.to_string())
}
