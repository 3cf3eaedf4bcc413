//! The host's PCI functions: as a picture, with a verdict on each, and a way to give one to a guest.

mod picture;

use std::collections::BTreeSet;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::page::{Failure, render};
use super::words::Words;
use super::{Page, Pages, Posted, Visit, words};
use crate::control::Right;
use crate::wire::{Device, DeviceUse, Edit, Verdict};

#[derive(Template)]
#[template(path = "devices.html")]
struct DevicesTemplate {
    page: Page,
    devices: Vec<Device>,
    guests: Vec<String>,
}

/// How a verdict looks, and what it is called.
pub(super) fn verdict(verdict: &Verdict, w: &'static Words) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Ready => ("good", w.verdict_ready),
        Verdict::PossibleAfter => ("warn", w.verdict_after),
        Verdict::Impossible => ("bad", w.verdict_no),
    }
}

/// An address as the name of a place on the page.
pub(super) fn anchor(address: &str) -> String {
    format!("d-{}", address.replace([':', '.'], "-"))
}

/// The colour of a function's group: those of the first eight groups differ, and then it begins anew.
fn colour(devices: &[Device], device: &Device) -> String {
    let Some(group) = device.iommu_group else { return String::new() };
    let groups: BTreeSet<u32> = devices.iter().filter_map(|device| device.iommu_group).collect();
    format!("g{}", groups.range(..group).count() % 8)
}

impl DevicesTemplate {
    fn picture(&self) -> String {
        picture::draw(&self.devices, self.page.w)
    }

    /// What a guest could have.
    fn endpoints(&self) -> Vec<&Device> {
        self.devices.iter().filter(|device| !device.bridge).collect()
    }

    /// The colour of its group.
    fn colour(&self, device: &Device) -> String {
        colour(&self.devices, device)
    }

    /// He may give this one away from here.
    fn gives(&self, device: &Device) -> bool {
        let held = device.uses.iter().any(|one| matches!(one, DeviceUse::Guest(_)));
        device.verdict != Verdict::Impossible
            && !held
            && !self.guests.is_empty()
            && self.page.may(Right::AssignDevices)
            && self.page.administers()
    }
}

/// All of them.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let devices = match pages.control.devices(&visit.actor).await {
        Ok(devices) => devices,
        Err(problem) => return Err(visit.failed(problem)),
    };
    // Without a file that can be read, nothing can be given away, and the rest is shown.
    let config = pages.control.config(&visit.actor).await;
    let guests = match config {
        Ok(config) => pages.control.defined(&visit.actor, config.text, String::new()).await,
        Err(problem) => Err(problem),
    };
    let guests = guests.map(|defined| defined.guests).unwrap_or_default();
    Ok(render(StatusCode::OK, &DevicesTemplate { page: visit.page, devices, guests }))
}

/// Gives one to a guest: in a text that is looked at before it is saved.
pub(super) async fn give(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    let edit =
        Edit::GiveDevice { address: posted.get("address").to_owned(), guest: posted.get("guest").to_owned() };
    pages.review_edit(posted.visit, edit).await
}
