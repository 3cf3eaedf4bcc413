//! The box: what it is fit for, where it differs from its file, what this program is.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::page::{Failure, render};
use super::words::Words;
use super::{Page, Pages, Visit};
use crate::wire::{Doctor, Drift, Health, Overview};

#[derive(Template)]
#[template(path = "about.html")]
struct AboutTemplate {
    page: Page,
    overview: Overview,
    doctor: Doctor,
    /// None where nothing holds, or it cannot be said.
    drift: Option<Vec<Drift>>,
}

fn health(health: &Health, w: &'static Words) -> (&'static str, &'static str) {
    match health {
        Health::Good => ("good", w.health_good),
        Health::Fair => ("warn", w.health_fair),
        Health::Bad => ("bad", w.health_bad),
    }
}

/// All of it.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let by = &visit.actor;
    let found = async {
        Ok::<_, crate::control::Problem>((pages.control.overview(by).await?, pages.control.doctor(by).await?))
    };
    let (overview, doctor) = match found.await {
        Ok(found) => found,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let drift = pages.control.drift(by).await.ok();
    Ok(render(StatusCode::OK, &AboutTemplate { page: visit.page, overview, doctor, drift }))
}
