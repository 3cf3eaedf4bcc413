//! The admin API and pages. What they show and do is behind the trait [`Control`], which the appliance implements: this crate
//! knows nothing of a PCI bus or a guest but what the types in [`wire`] say.
//!
//! A request comes in over a listener, is checked by [`access`] (who is it, may he), asked of [`Control`], and answered
//! as JSON (`/api/v1`) or as a page.

#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod control;
pub mod pages;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

pub use control::{Actor, Answer, Console, Control, Problem, Request, Right, Role, Shared, Upload, Verb};

use access::Access;

/// All that is served, behind the gate: the API, people's routes and the pages.
pub fn app(control: Shared, access: &Access) -> axum::Router {
    let pages = pages::Pages::new(control.clone()).router();
    access.guard(pages.merge(access::routes()).merge(api::routes(control)))
}
