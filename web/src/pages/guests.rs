//! Guests: all of them, and one.

use std::borrow::Borrow;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::page::{Failure, html, render};
use super::plots::Plotted;
use super::words::{Words, fill};
use super::{Page, Pages, Posted, Visit, guests, shape, words};
use crate::control::{Problem, Verb};
use crate::wire::{Guest, GuestState, GuestStats};

/// How a state looks.
pub(super) fn class(state: impl Borrow<GuestState>) -> &'static str {
    match state.borrow() {
        GuestState::Running => "good",
        GuestState::Off => "off",
        GuestState::Paused => "warn",
        GuestState::BackingOff => "bad",
        GuestState::Waiting | GuestState::Starting | GuestState::Stopping => "busy",
    }
}

/// What can be done to a guest in its state, as forms name it; true where it asks whether one is sure.
pub(super) fn verbs(guest: &Guest, w: &'static Words) -> Vec<(&'static str, &'static str, bool)> {
    let process = guest.pid.is_some();
    let verb = |verb, word, sure| (verb, word, sure);
    match guest.state {
        GuestState::Off | GuestState::BackingOff | GuestState::Waiting => {
            let mut verbs = vec![verb("start", w.start, false)];
            if guest.state != GuestState::Off {
                verbs.push(verb("stop", w.stop, false));
            }
            verbs
        }
        GuestState::Running => vec![
            verb("stop", w.stop, false),
            verb("pause", w.pause, false),
            verb("power-button", w.power_button, false),
            verb("reset", w.reset, true),
            verb("kill", w.pull_plug, true),
        ],
        GuestState::Paused => {
            vec![
                verb("resume", w.resume, false),
                verb("reset", w.reset, true),
                verb("kill", w.pull_plug, true),
            ]
        }
        GuestState::Starting | GuestState::Stopping if process => vec![verb("kill", w.pull_plug, true)],
        GuestState::Starting | GuestState::Stopping => Vec::new(),
    }
}

#[derive(Template)]
#[template(path = "guests.html", blocks = ["live"])]
struct ListTemplate {
    page: Page,
    guests: Vec<Guest>,
}

/// All guests.
pub(super) async fn list(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    match pages.control.guests(&visit.actor).await {
        Ok(guests) => {
            let live = visit.live;
            let template = ListTemplate { page: visit.page, guests };
            if live {
                return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
            }
            Ok(render(StatusCode::OK, &template))
        }
        Err(problem) => Err(visit.failed(problem)),
    }
}

#[derive(Template)]
#[template(path = "guest.html", blocks = ["live"])]
struct GuestTemplate {
    page: Page,
    guest: Guest,
    stats: Option<GuestStats>,
    plots: Option<Plotted>,
}

impl GuestTemplate {
    /// What is plotted: its name, its value now, its picture.
    fn quantities(&self) -> Vec<(&'static str, String, String)> {
        let Some(plots) = self.plots.clone() else { return Vec::new() };
        let w = self.page.w;
        let all = [
            (w.cpu, plots.cpu),
            (w.memory, plots.memory),
            (w.exits, plots.exits),
            (w.interrupts, plots.interrupts),
            (w.packets, plots.traffic),
        ];
        all.map(|(name, plot)| (name, plot.now, plot.svg)).into()
    }

    /// The most frequent causes of exits.
    fn exits(&self) -> Vec<(String, u64)> {
        let exits = self.stats.iter().flat_map(|stats| &stats.exits);
        let mut exits: Vec<_> =
            exits.filter(|(_, count)| **count > 0).map(|(name, count)| (name.clone(), *count)).collect();
        exits.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        exits.truncate(8);
        exits
    }
}

/// One guest.
pub(super) async fn show(
    State(pages): State<Pages>,
    Path(name): Path<String>,
    visit: Visit,
) -> Result<Response, Failure> {
    let guests = match pages.control.guests(&visit.actor).await {
        Ok(guests) => guests,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let Some(guest) = guests.iter().find(|guest| guest.name == name).cloned() else {
        let problem = Problem::not_found(fill(visit.page.w.no_such_guest, &[&name]));
        return Err(visit.failed(problem));
    };
    let plots = pages.plots.look(&*pages.control, &visit.actor, &guests).await.remove(&name);
    let stats = match guest.state {
        GuestState::Running | GuestState::Paused => pages.control.guest_stats(&visit.actor, name).await.ok(),
        _ => None,
    };
    let live = visit.live;
    let template = GuestTemplate { page: visit.page, guest, stats, plots };
    if live {
        return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
    }
    Ok(render(StatusCode::OK, &template))
}

/// Does something to a guest.
pub(super) async fn act(
    State(pages): State<Pages>,
    Path(name): Path<String>,
    posted: Posted,
) -> Result<Response, Failure> {
    let verb = match posted.get("verb") {
        "start" => Verb::Start,
        "stop" => Verb::Stop,
        "kill" => Verb::Kill,
        "pause" => Verb::Pause,
        "resume" => Verb::Resume,
        "reset" => Verb::Reset,
        "power-button" => Verb::PowerButton,
        other => {
            let problem = Problem::malformed(format!("There is no verb `{other}`"));
            return Err(posted.failed(problem));
        }
    };
    match pages.control.act(&posted.visit.actor, name, verb).await {
        Ok(()) => Ok(Redirect::to(&posted.back()).into_response()),
        Err(problem) => Err(posted.failed(problem)),
    }
}
