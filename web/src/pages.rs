//! The pages: HTML that the server makes, with small scripts that nothing depends on.
//!
//! A page's code and its template are beside each other. What a person does is a form that is posted, so each page is of use
//! without a script as well; a script asks for a page's live part again while somebody looks at it.

mod about;
mod assets;
mod changes;
mod configuration;
mod console;
mod devices;
mod door;
mod form;
mod guests;
mod images;
mod logs;
mod look;
mod networks;
mod overview;
mod page;
mod people;
mod plots;
mod shape;
mod sriov;
mod visit;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
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
    screens: console::Screens,
}

impl Pages {
    /// Pages of an appliance.
    pub fn new(control: Shared) -> Self {
        Self { control, plots: Arc::default(), screens: console::Screens::default() }
    }

    /// All of them, from `/` on. They are to be behind [`Access::guard`](crate::access::Access::guard).
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(overview::show))
            .route("/guests", get(guests::list).post(form::put))
            .route("/guests/new", get(form::new))
            .route("/guests/{name}", get(guests::show))
            .route("/guests/{name}/edit", get(form::edit))
            .route("/guests/{name}/act", post(guests::act))
            .route("/guests/{name}/console", get(console::show).post(console::form))
            .route("/guests/{name}/console/screen", get(console::screen))
            .route("/guests/{name}/console/keys", post(console::typed))
            .route("/devices", get(devices::show))
            .route("/devices/give", post(devices::give))
            .route("/sriov", get(sriov::show).post(sriov::set))
            .route("/networks", get(networks::show))
            .route("/images", get(images::show))
            .route("/images/remove", post(images::remove))
            .route("/configuration", get(configuration::show).post(configuration::post))
            .route("/changes", get(changes::show))
            .route("/changes/back", post(changes::put_back))
            .route("/changes/{id}/confirm", post(changes::confirm))
            .route("/logs", get(logs::show))
            .route("/audit", get(logs::audit))
            .route("/about", get(about::show))
            .route("/people", get(people::show))
            .route("/people/users", post(people::add_user))
            .route("/people/users/{name}", post(people::change_user))
            .route("/people/password", post(people::change_password))
            .route("/people/tokens", post(people::add_token))
            .route("/people/tokens/remove", post(people::remove_token))
            .route("/login", get(door::login).post(door::open))
            .route("/claim", get(door::claim).post(door::open))
            .route("/logout", post(door::leave))
            .route("/banner", get(page::banner))
            .route("/look", post(look::choose))
            .route("/assets/{name}", get(assets::serve))
            .fallback(page::nothing_here)
            // A file may have 1 MiB, of which a form may make three.
            .layer(DefaultBodyLimit::max(4 << 20))
            .with_state(self)
    }
}

#[cfg(test)]
mod tests;
