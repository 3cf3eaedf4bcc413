//! SR-IOV: the physical functions, their VFs, what was asked for of each and what it is, who has it.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::devices::anchor;
use super::page::{Failure, render};
use super::{Page, Pages, Posted, Visit, words};
use crate::control::{Problem, Right};
use crate::wire::{Device, DeviceUse, Edit, VfAttribute};

#[derive(Template)]
#[template(path = "sriov.html")]
struct SriovTemplate {
    page: Page,
    devices: Vec<Device>,
}

impl SriovTemplate {
    fn physical(&self) -> Vec<&Device> {
        self.devices.iter().filter(|device| device.sriov.is_some()).collect()
    }

    fn virtual_of(&self, address: &str) -> Vec<&Device> {
        let mut vfs: Vec<&Device> = self
            .devices
            .iter()
            .filter(|device| device.physical_function.as_deref() == Some(address))
            .collect();
        vfs.sort_by_key(|vf| vf.vf_index);
        vfs
    }

    fn changes(&self) -> bool {
        self.page.administers() && self.page.may(Right::AssignDevices)
    }
}

/// How an attribute looks: as asked for, otherwise, or not known to the driver.
fn class(attribute: &VfAttribute) -> &'static str {
    match (&attribute.requested, &attribute.actual) {
        (None, _) => "off",
        (Some(_), None) => "warn",
        (Some(requested), Some(actual)) if requested == actual => "good",
        (Some(_), Some(_)) => "bad",
    }
}

/// All of them.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    match pages.control.devices(&visit.actor).await {
        Ok(devices) => Ok(render(StatusCode::OK, &SriovTemplate { page: visit.page, devices })),
        Err(problem) => Err(visit.failed(problem)),
    }
}

/// Says how many there are: in a text that is looked at before it is saved.
pub(super) async fn set(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    let Ok(count) = posted.get("count").trim().parse() else {
        let problem = Problem::malformed(posted.visit.page.w.count_is_no_number);
        return Err(posted.failed(problem));
    };
    let edit = Edit::SetVfs { address: posted.get("address").to_owned(), count };
    pages.review_edit(posted.visit, edit).await
}
