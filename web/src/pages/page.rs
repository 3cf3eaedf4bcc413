//! What all pages have: the frame with its menu, the banner of a change that waits, and how a failure looks.

use std::borrow::Borrow;

use askama::Template;
use askama::filters::{Html, escape};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html as Body, IntoResponse, Response};
use serde::Deserialize;

use super::words::{Language, Words};
use super::{Pages, Visit, assets, look, shape, visit};
use crate::control::{Actor, Problem, Right};
use crate::wire::{Change, ChangeState, Severity};

/// What the frame around a page shows.
pub(super) struct Page {
    pub(super) w: &'static Words,
    pub(super) language: Language,
    pub(super) theme: &'static str,
    /// Of this server, with its query.
    pub(super) path: String,
    pub(super) host: String,
    pub(super) who: Option<Actor>,
    pub(super) csrf: String,
    pub(super) change: Option<Change>,
    /// What the form that led here has done.
    pub(super) done: Option<String>,
}

/// Pages that belong together.
pub(super) struct Group {
    pub(super) title: &'static str,
    pub(super) items: Vec<(&'static str, &'static str)>,
}

impl Page {
    pub(super) fn new(language: Language, theme: &'static str, path: String) -> Self {
        Self {
            w: language.words(),
            language,
            theme,
            path,
            host: String::new(),
            who: None,
            csrf: String::new(),
            change: None,
            done: None,
        }
    }

    /// Whether he may do what needs this.
    pub(super) fn may(&self, right: Right) -> bool {
        self.who.as_ref().is_some_and(|who| who.may(right))
    }

    /// He may use guests.
    pub(super) fn operates(&self) -> bool {
        self.may(Right::Operate)
    }

    /// He may change the file and the host.
    pub(super) fn administers(&self) -> bool {
        self.may(Right::Administer)
    }

    pub(super) fn menu(&self) -> Vec<Group> {
        let w = self.w;
        let mut system = vec![("/logs", w.logs)];
        if self.administers() {
            system.push(("/audit", w.audit));
        }
        system.extend([("/people", w.people), ("/about", w.about)]);
        vec![
            Group { title: "", items: vec![("/", w.overview), ("/guests", w.guests), ("/images", w.images)] },
            Group {
                title: w.host,
                items: vec![("/devices", w.devices), ("/sriov", "SR-IOV"), ("/networks", w.networks)],
            },
            Group {
                title: w.configuration,
                items: vec![("/configuration", w.the_file), ("/changes", w.changes)],
            },
            Group { title: w.system, items: system },
        ]
    }

    pub(super) fn is_at(&self, item: &str) -> bool {
        let path = self.path.split('?').next().unwrap_or_default();
        path == item || (item != "/" && path.strip_prefix(item).is_some_and(|rest| rest.starts_with('/')))
    }

    pub(super) fn languages(&self) -> [(&'static str, &'static str, bool); 2] {
        Language::ALL.map(|one| (one.tag(), one.name(), one == self.language))
    }

    pub(super) fn themes(&self) -> [(&'static str, &'static str, bool); 3] {
        let names = [self.w.theme_auto, self.w.theme_light, self.w.theme_dark];
        let mut names = names.into_iter();
        look::THEMES.map(|theme| (theme, names.next().unwrap_or_default(), theme == self.theme))
    }

    /// The field of a form that shows that it is one of ours.
    pub(super) fn csrf(&self) -> String {
        csrf(&self.csrf)
    }

    /// Where a browser finds a file.
    pub(super) fn asset(&self, name: &str) -> String {
        assets::url(name)
    }

    pub(super) fn banner(&self) -> String {
        let back = self.path.clone();
        let banner = Banner {
            w: self.w,
            change: self.change.as_ref(),
            now: shape::now(),
            may: self.administers(),
            csrf: self.csrf(),
            back,
        };
        banner.render().unwrap_or_default()
    }

    /// A time: in UTC, until a script makes it local.
    pub(super) fn time(&self, at: impl Borrow<u64>) -> String {
        let at = *at.borrow();
        format!("<time datetime=\"{}\">{}</time>", shape::stamp(at), shape::time(at))
    }
}

fn csrf(word: &str) -> String {
    let word = escape(word, Html).map(|word| word.to_string()).unwrap_or_default();
    format!("<input type=\"hidden\" name=\"csrf\" value=\"{word}\">")
}

#[derive(Template)]
#[template(path = "banner.html")]
struct Banner<'a> {
    w: &'static Words,
    change: Option<&'a Change>,
    now: u64,
    may: bool,
    csrf: String,
    back: String,
}

impl Banner<'_> {
    fn left(&self) -> String {
        let until = self.change.and_then(|change| change.until).unwrap_or_default();
        shape::left(until.saturating_sub(self.now))
    }
}

/// Where the page is that asks for its banner.
#[derive(Deserialize)]
pub(super) struct Asked {
    back: Option<String>,
}

/// The banner alone, for a script.
pub(super) async fn banner(mut visit: Visit, Query(asked): Query<Asked>) -> Response {
    visit.page.path = visit::inside(asked.back.as_deref().unwrap_or("/"));
    html(StatusCode::OK, visit.page.banner())
}

/// Something that was not done, as a page.
pub(super) struct Failure(Box<FailureTemplate>);

impl Failure {
    pub(super) fn new(page: Page, problem: Problem) -> Self {
        Self(Box::new(FailureTemplate { page, problem }))
    }
}

#[derive(Template)]
#[template(path = "failure.html")]
struct FailureTemplate {
    page: Page,
    problem: Problem,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        render(status, &*self.0)
    }
}

impl Visit {
    /// A failure, on a page of this visit.
    pub(super) fn failed(self, problem: Problem) -> Failure {
        Failure::new(self.page, problem)
    }
}

/// No such page.
pub(super) async fn nothing_here(State(_): State<Pages>, visit: Visit) -> Failure {
    let problem = Problem::not_found(visit.page.w.no_such_page);
    visit.failed(problem)
}

/// A template as a page.
pub(super) fn render(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => html(status, text),
        Err(error) => {
            tracing::error!("Making a page: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// HTML that nobody but the browser's window keeps.
pub(super) fn html(status: StatusCode, text: String) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], Body(text)).into_response()
}
