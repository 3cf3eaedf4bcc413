//! Disk images and installers: which there are, bringing one in, taking one away.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::page::{Failure, render};
use super::{Page, Pages, Posted, Visit, shape, words};
use crate::wire::Image;

#[derive(Template)]
#[template(path = "images.html")]
struct ImagesTemplate {
    page: Page,
    images: Vec<Image>,
}

/// All of them.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    match pages.control.images(&visit.actor).await {
        Ok(images) => Ok(render(StatusCode::OK, &ImagesTemplate { page: visit.page, images })),
        Err(problem) => Err(visit.failed(problem)),
    }
}

/// Takes one away.
pub(super) async fn remove(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    let name = posted.get("name").to_owned();
    match pages.control.remove_image(&posted.visit.actor, name.clone()).await {
        Ok(()) => {
            let query = [("done", "removed"), ("what", name.as_str())];
            let query = serde_urlencoded::to_string(query).unwrap_or_default();
            Ok(Redirect::to(&format!("/images?{query}")).into_response())
        }
        Err(problem) => Err(posted.failed(problem)),
    }
}
