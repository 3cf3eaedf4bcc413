//! Changes of the host: which were made, which one holds, and the one that waits for a word.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::page::{Failure, html, render};
use super::words::Words;
use super::{Page, Pages, Posted, Visit, words};
use crate::wire::{Change, ChangeState};

#[derive(Template)]
#[template(path = "changes.html", blocks = ["live"])]
struct ChangesTemplate {
    page: Page,
    changes: Vec<Change>,
}

/// How a state looks and what it is called.
fn state(state: &ChangeState, w: &'static Words) -> (&'static str, &'static str) {
    match state {
        ChangeState::Applying => ("busy", w.change_applying),
        ChangeState::Waiting => ("warn", w.change_waiting),
        ChangeState::Committed => ("good", w.change_committed),
        ChangeState::Reverted => ("off", w.change_reverted),
        ChangeState::Failed => ("bad", w.change_failed),
    }
}

/// All of them.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let changes = match pages.control.changes(&visit.actor).await {
        Ok(changes) => changes,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let live = visit.live;
    let template = ChangesTemplate { page: visit.page, changes };
    if live {
        return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
    }
    Ok(render(StatusCode::OK, &template))
}

/// He still comes in.
pub(super) async fn confirm(
    State(pages): State<Pages>,
    Path(id): Path<u64>,
    posted: Posted,
) -> Result<Response, Failure> {
    match pages.control.confirm(&posted.visit.actor, id).await {
        Ok(()) => Ok(Redirect::to("/changes?done=confirmed").into_response()),
        Err(problem) => Err(posted.failed(problem)),
    }
}

/// Puts the last one back.
pub(super) async fn put_back(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    match pages.control.rollback(&posted.visit.actor).await {
        Ok(_) => Ok(Redirect::to("/changes").into_response()),
        Err(problem) => Err(posted.failed(problem)),
    }
}
