//! The pages: HTML that the server makes, with small scripts that nothing depends on.
//!
//! A page's code and its template are beside each other. What a person does is a form that is posted, so each page is of use
//! without a script as well; a script asks for a page's live part again while somebody looks at it.

mod assets;
mod guests;
mod look;
mod overview;
mod page;
mod plots;
mod shape;
mod visit;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::control::Shared;
use page::Page;
use visit::{Posted, Visit};

#[cfg(any(test, feature = "testing"))]
pub(crate) use shape::now;

/// What the pages need.
#[derive(Clone)]
pub struct Pages {
    control: Shared,
    plots: Arc<plots::Plots>,
}

impl Pages {
    /// Pages of an appliance.
    pub fn new(control: Shared) -> Self {
        Self { control, plots: Arc::default() }
    }

    /// All of them, from `/` on. They are to be behind [`Access::guard`](crate::access::Access::guard).
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(overview::show))
            .route("/guests", get(guests::list))
            .route("/guests/{name}", get(guests::show))
            .route("/guests/{name}/act", post(guests::act))
            .route("/banner", get(page::banner))
            .route("/look", post(look::choose))
            .route("/assets/{name}", get(assets::serve))
            .fallback(page::nothing_here)
            .with_state(self)
    }
}

#[cfg(test)]
mod tests;
