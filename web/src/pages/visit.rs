//! Somebody who looks at a page: who he is, and how he likes it.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ACCEPT_LANGUAGE, COOKIE};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};

use super::page::Failure;
use super::words::{Language, Words, fill};
use super::{Page, Pages, look};
use crate::access::{Form, Login, Refusal};
use crate::control::{Actor, Problem};

/// A visit of a page by one who is logged in.
pub(super) struct Visit {
    pub(super) page: Page,
    pub(super) actor: Actor,
    pub(super) login: Login,
    /// Only the part that changes by itself is asked for.
    pub(super) live: bool,
}

/// How a browser likes its pages.
pub(super) fn liking(parts: &Parts) -> (Language, &'static str) {
    let headers = &parts.headers;
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies: Vec<(&str, &str)> =
        cookies.flat_map(|line| line.split(';')).filter_map(|one| one.trim().split_once('=')).collect();
    let cookie = |name| cookies.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let accepted = || headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let language = cookie("language").and_then(Language::chosen);
    let language = language.unwrap_or_else(|| Language::accepted(accepted()));
    let theme = cookie("theme").and_then(|name| look::THEMES.into_iter().find(|theme| *theme == name));
    (language, theme.unwrap_or("auto"))
}

/// A path of this server, whatever a form said.
pub(super) fn inside(path: &str) -> String {
    let plain = path.starts_with('/')
        && !path.starts_with("//")
        && !["/login", "/claim", "/logout"].iter().any(|door| path.starts_with(door))
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if plain { path.to_owned() } else { "/".to_owned() }
}

impl FromRequestParts<Pages> for Visit {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Response> {
        let login =
            Login::from_request_parts(parts, pages).await.map_err(|refusal| refused(parts, refusal))?;
        Self::of(parts, pages, login).await
    }
}

impl Visit {
    async fn of(parts: &Parts, pages: &Pages, login: Login) -> Result<Self, Response> {
        let (language, theme) = liking(parts);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let overview = pages.control.overview(&login.actor).await;
        let mut page = Page::new(language, theme, path);
        page.csrf = login.csrf.clone();
        page.who = Some(login.actor.clone());
        match overview {
            Ok(overview) => {
                page.host = overview.host;
                page.change = overview.change;
            }
            Err(problem) => return Err(Failure::new(page, problem).into_response()),
        }
        page.done = parts.uri.query().and_then(|query| done(page.w, query));
        let live = parts.headers.contains_key("x-live");
        Ok(Self { page, actor: login.actor.clone(), login, live })
    }
}

/// A page that says why not, or the way to the one where he logs in.
fn refused(parts: &Parts, refusal: Refusal) -> Response {
    if refusal.leads_elsewhere() {
        return refusal.into_response();
    }
    let (language, theme) = liking(parts);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Failure::new(Page::new(language, theme, path), refusal.problem().clone()).into_response()
}

/// What was done by the form that led here: `done=started&what=web`.
fn done(w: &'static Words, query: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let text = match value("done")? {
        "asked" => w.asked_for,
        "saved" => w.saved,
        "confirmed" => w.confirmed,
        "removed" => w.removed,
        "applying" => w.applying,
        "added" => w.added,
        "changed" => w.changed_done,
        "password" => w.password_changed,
        _ => return None,
    };
    Some(fill(text, &[value("what").unwrap_or_default()]))
}

/// A form that one who is logged in has posted.
pub(super) struct Posted {
    pub(super) visit: Visit,
    fields: Vec<(String, String)>,
}

impl Posted {
    /// All fields of this name, in the order of the form.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The first field of this name; empty where there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }

    /// A failure, on a page of this visit.
    pub(super) fn failed(self, problem: Problem) -> Failure {
        Failure::new(self.visit.page, problem)
    }

    /// Where it said that he came from.
    pub(super) fn back(&self) -> String {
        inside(self.get("back"))
    }
}

impl FromRequest<Pages> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, pages: &Pages) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let form = Form::<Vec<(String, String)>>::from_request(request, pages).await;
        let Form { login, data } = form.map_err(|refusal| {
            if refusal.problem().status != 403 {
                return refused(&parts, refusal);
            }
            let (language, theme) = liking(&parts);
            let page = Page::new(language, theme, parts.uri.path().to_owned());
            let problem = Problem::forbidden(page.w.form_is_old);
            Failure::new(page, problem).into_response()
        })?;
        Ok(Self { visit: Visit::of(&parts, pages, login).await?, fields: data })
    }
}
