//! A guest's console. Its screen is kept here, so that whoever loads the page again sees what was there.

mod cells;
mod keys;
mod screens;

use std::time::Duration;

use askama::Template;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::page::{Failure, html, render};
use super::{Page, Pages, Posted, Visit, words};
use crate::access::Login;
use crate::control::{Problem, Right};

pub(super) use screens::Screens;

/// How long a browser waits for something new before it is told that there is nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is typed at once is no longer than this.
const LONGEST: usize = 64 << 10;

#[derive(Template)]
#[template(path = "console.html")]
struct ConsoleTemplate {
    page: Page,
    guest: String,
    /// The screen, as HTML; none where there is no console.
    rows: Option<String>,
    version: u64,
    /// Why there is none.
    why: Option<Problem>,
}

/// The page.
pub(super) async fn show(State(pages): State<Pages>, Path(guest): Path<String>, visit: Visit) -> Response {
    let (rows, version, why) = match pages.screens.open(&pages.control, &visit.actor, &guest).await {
        Ok(screen) => {
            screen.settled().await;
            let drawn = screen.drawn();
            (Some(drawn.rows), drawn.version, None)
        }
        Err(problem) => (None, 0, Some(problem)),
    };
    let status = why.as_ref().and_then(|problem| StatusCode::from_u16(problem.status).ok());
    let template = ConsoleTemplate { page: visit.page, guest, rows, version, why };
    render(status.unwrap_or(StatusCode::OK), &template)
}

/// What he has seen.
#[derive(Deserialize)]
pub(super) struct Seen {
    #[serde(default)]
    seen: u64,
}

/// The screen once it is another one than he has seen, for a script. 410 where the console has ended.
pub(super) async fn screen(
    State(pages): State<Pages>,
    Path(guest): Path<String>,
    Query(seen): Query<Seen>,
    login: Login,
) -> Result<Response, Problem> {
    let screen = pages.screens.open(&pages.control, &login.actor, &guest).await?;
    // Nothing new is no failure: the same is said again.
    let _ = tokio::time::timeout(PATIENCE, screen.changed(seen.seen)).await;
    let drawn = screen.drawn();
    if drawn.ended && drawn.version == seen.seen {
        return Err(Problem { status: 410, ..Problem::conflict("The console has ended") });
    }
    let headers = [
        (HeaderName::from_static("x-version"), drawn.version.to_string()),
        (HeaderName::from_static("x-arrows"), (if drawn.application_arrows { "O" } else { "[" }).to_owned()),
        (HeaderName::from_static("x-paste"), (if drawn.bracketed_paste { "1" } else { "" }).to_owned()),
    ];
    Ok((headers, html(StatusCode::OK, drawn.rows)).into_response())
}

/// What was typed, from a script.
pub(super) async fn typed(
    State(pages): State<Pages>,
    Path(guest): Path<String>,
    login: Login,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    login.must(Right::Operate)?;
    if body.len() > LONGEST {
        return Err(Problem::too_long("That is too much to type at once"));
    }
    let screen = pages.screens.open(&pages.control, &login.actor, &guest).await?;
    screen.write(&pages.control, &login.actor, body.to_vec()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A line or a key, from a form.
pub(super) async fn form(
    State(pages): State<Pages>,
    Path(guest): Path<String>,
    posted: Posted,
) -> Result<Response, Failure> {
    let by = &posted.visit.actor;
    let typed = async {
        posted.visit.login.must(Right::Operate)?;
        let screen = pages.screens.open(&pages.control, by, &guest).await?;
        let bytes = match posted.get("key") {
            "" => format!("{}\r", posted.get("line")).into_bytes(),
            key => keys::bytes(key, screen.drawn().application_arrows)
                .ok_or_else(|| Problem::malformed(format!("There is no key `{key}`")))?,
        };
        let seen = screen.drawn().version;
        screen.write(&pages.control, by, bytes).await?;
        // What the guest says to it is worth a moment.
        let _ = tokio::time::timeout(Duration::from_secs(1), screen.changed(seen)).await;
        screen.settled().await;
        Ok(())
    };
    match typed.await {
        Ok(()) => {
            let guest = askama::filters::urlencode_strict(&guest).map(|name| name.to_string());
            Ok(Redirect::to(&format!("/guests/{}/console", guest.unwrap_or_default())).into_response())
        }
        Err(problem) => Err(posted.failed(problem)),
    }
}
