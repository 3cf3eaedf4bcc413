//! `/api/v1`: JSON, problems as RFC 9457 says, the file with its tag, events, consoles; and what is measured.

mod answer;
mod changes;
mod config;
mod console;
mod description;
mod events;
mod guests;
mod host;
mod images;
mod metrics;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};

pub(crate) use answer::{At, Said};
pub use answer::{By, Json};
pub use description::document;

use crate::control::{Problem, Shared};

/// The largest body but for images: a file may have 1 MiB, and JSON around it.
pub const LONGEST_BODY: usize = 2 << 20;

/// All routes. Who asks is looked for by [`By`].
pub fn routes(control: Shared) -> Router {
    let v1 = Router::new()
        .route("/overview", get(host::overview))
        .route("/devices", get(host::devices))
        .route("/devices/{address}", get(host::device))
        .route("/networks", get(host::networks))
        .route("/drift", get(host::drift))
        .route("/doctor", get(host::doctor))
        .route("/log", get(host::log))
        .route("/audit", get(host::audit))
        .route("/guests", get(guests::all))
        .route("/guests/{name}", get(guests::one))
        .route("/guests/{name}/stats", get(guests::stats))
        .route("/guests/{name}/log", get(guests::log))
        .route("/guests/{name}/console", get(console::attach))
        .route("/guests/{name}/{verb}", post(guests::act))
        .route("/config", get(config::read).put(config::save))
        .route("/config/check", post(config::check))
        .route("/config/plan", post(config::plan))
        .route("/config/schema", get(config::schema))
        .route("/changes", get(changes::all).post(changes::apply))
        .route("/changes/rollback", post(changes::rollback))
        .route("/changes/{id}", get(changes::one))
        .route("/changes/{id}/confirm", post(changes::confirm))
        .route("/images", get(images::all))
        .route("/images/{name}", put(images::upload).delete(images::remove))
        .route("/events", get(events::listen))
        .route("/openapi.json", get(description::serve))
        .fallback(nothing_there)
        .method_not_allowed_fallback(not_so);
    Router::new()
        .nest("/api/v1", v1)
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(host::healthz))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(control)
}

async fn nothing_there() -> Problem {
    Problem::not_found("There is nothing at this address; /api/v1/openapi.json lists what there is")
}

async fn not_so() -> Problem {
    Problem::method("This is not done here; /api/v1/openapi.json lists what is")
}
