//! Logs: of the daemon, of a guest's process, of its console; and who changed what.

use askama::Template;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::page::{Failure, html, render};
use super::{Page, Pages, Visit};
use crate::wire::{AuditEntry, Log};

/// Lines of a log on a page.
const LINES: u32 = 400;
/// Entries of the audit log on a page.
const ENTRIES: u32 = 50;

/// Which log.
#[derive(Clone, Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    guest: String,
    #[serde(default)]
    of: String,
}

#[derive(Template)]
#[template(path = "logs.html", blocks = ["live"])]
struct LogsTemplate {
    page: Page,
    which: Which,
    guests: Vec<String>,
    log: Log,
}

/// The end of a log.
pub(super) async fn show(
    State(pages): State<Pages>,
    Query(which): Query<Which>,
    visit: Visit,
) -> Result<Response, Failure> {
    let by = &visit.actor;
    let guests = match pages.control.guests(by).await {
        Ok(guests) => guests.into_iter().map(|guest| guest.name).collect(),
        Err(problem) => return Err(visit.failed(problem)),
    };
    let guest = (!which.guest.is_empty()).then(|| which.guest.clone());
    let console = guest.is_some() && which.of == "console";
    let log = match pages.control.log(by, guest, console, LINES).await {
        Ok(log) => log,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let live = visit.live;
    let template = LogsTemplate { page: visit.page, which, guests, log };
    if live {
        return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
    }
    Ok(render(StatusCode::OK, &template))
}

/// From where on.
#[derive(Deserialize)]
pub(super) struct From {
    before: Option<u64>,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditTemplate {
    page: Page,
    entries: Vec<AuditEntry>,
    /// There may be older ones: before which.
    older: Option<u64>,
}

/// Who changed what.
pub(super) async fn audit(
    State(pages): State<Pages>,
    Query(from): Query<From>,
    visit: Visit,
) -> Result<Response, Failure> {
    match pages.control.audit(&visit.actor, from.before, ENTRIES).await {
        Ok(entries) => {
            let full = u32::try_from(entries.len()).is_ok_and(|count| count >= ENTRIES);
            let older = entries.last().map(|entry| entry.id).filter(|id| full && *id > 1);
            Ok(render(StatusCode::OK, &AuditTemplate { page: visit.page, entries, older }))
        }
        Err(problem) => Err(visit.failed(problem)),
    }
}
