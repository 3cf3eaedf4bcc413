//! The box at a glance: what needs somebody, the guests, and what they do now.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::page::{Failure, html, render};
use super::plots::Plotted;
use super::words::{Words, fill};
use super::{Page, Pages, Visit, guests, shape, words};
use crate::wire::{Guest, GuestState, Overview};

#[derive(Template)]
#[template(path = "overview.html", blocks = ["live"])]
struct Template_ {
    page: Page,
    overview: Overview,
    plots: BTreeMap<String, Plotted>,
}

/// What needs somebody, with where to look at it.
struct Concern {
    class: &'static str,
    text: String,
    link: String,
}

impl Template_ {
    fn w(&self) -> &'static Words {
        self.page.w
    }

    fn concerns(&self) -> Vec<Concern> {
        let w = self.w();
        let mut concerns = Vec::new();
        for fault in &self.overview.device_faults {
            concerns.push(Concern { class: "bad", text: fault.clone(), link: "/devices".into() });
        }
        for guest in &self.overview.guests {
            let detail = guest.detail.clone().unwrap_or_default();
            if guest.state == GuestState::BackingOff {
                let text = fill(w.guest_fails, &[&guest.name, &detail]);
                concerns.push(Concern { class: "bad", text, link: format!("/guests/{}", guest.name) });
            } else if guest.changed && guest.state != GuestState::Off {
                let text = fill(w.guest_is_old, &[&guest.name]);
                concerns.push(Concern { class: "warn", text, link: format!("/guests/{}", guest.name) });
            }
        }
        if let Some(drift) = self.overview.drift.as_ref().filter(|drift| !drift.is_empty()) {
            let text = fill(w.drift_is, &[&drift.len().to_string()]);
            concerns.push(Concern { class: "warn", text, link: "/about#drift".into() });
        }
        concerns
    }

    fn running(&self) -> usize {
        let runs = |guest: &&Guest| guest.state == GuestState::Running;
        self.overview.guests.iter().filter(runs).count()
    }

    fn memory_used(&self) -> u64 {
        self.overview.memory.saturating_sub(self.overview.memory_available)
    }
}

/// The page, or its live part.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let overview = match pages.control.overview(&visit.actor).await {
        Ok(overview) => overview,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let plots = pages.plots.look(&*pages.control, &visit.actor, &overview.guests).await;
    let live = visit.live;
    let template = Template_ { page: visit.page, overview, plots };
    if live {
        return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
    }
    Ok(render(StatusCode::OK, &template))
}
