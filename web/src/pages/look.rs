//! Language and colours: each browser's own, kept in cookies of it.

use axum::Form;
use axum::http::header::SET_COOKIE;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::visit::inside;
use super::words::Language;

/// What was chosen: one of the two, and where he came from.
#[derive(Deserialize)]
pub(super) struct Look {
    language: Option<String>,
    theme: Option<String>,
    back: Option<String>,
}

/// By name.
pub(super) const THEMES: [&str; 3] = ["auto", "light", "dark"];

/// Keeps it for a year.
pub(super) async fn choose(Form(look): Form<Look>) -> Response {
    let language = look.language.as_deref().and_then(Language::chosen).map(|one| ("language", one.tag()));
    let theme = look.theme.as_deref().and_then(|name| THEMES.into_iter().find(|theme| *theme == name));
    let cookies = [language, theme.map(|theme| ("theme", theme))].into_iter().flatten();
    let cookies: Vec<_> = cookies
        .map(|(key, value)| {
            (SET_COOKIE, format!("{key}={value}; Path=/; Max-Age=31536000; SameSite=Strict; HttpOnly"))
        })
        .collect();
    let back = inside(look.back.as_deref().unwrap_or("/"));
    (AppendHeaders(cookies), Redirect::to(&back)).into_response()
}
