//! A guest as a form: what it says becomes the file's text, which is looked at before it is saved.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::page::{Failure, render};
use super::words::fill;
use super::{Page, Pages, Posted, Visit, words};
use crate::control::Problem;
use crate::wire::{Defined, DefinedDisk, DefinedNic, Definition, Edit, Image};

/// Empty rows for what may be added.
const EMPTY_ROWS: usize = 2;
/// No form has more rows of a kind.
const MOST_ROWS: usize = 64;

#[derive(Template)]
#[template(path = "form.html")]
struct FormTemplate {
    page: Page,
    /// None for a new one.
    name: Option<String>,
    guest: Definition,
    defined: Defined,
    images: Vec<Image>,
}

impl FormTemplate {
    fn nics(&self) -> Vec<DefinedNic> {
        let empty = std::iter::repeat_n(DefinedNic::default(), EMPTY_ROWS);
        self.guest.nics.iter().cloned().chain(empty).collect()
    }

    fn disks(&self) -> Vec<DefinedDisk> {
        let empty = std::iter::repeat_n(DefinedDisk::default(), EMPTY_ROWS);
        self.guest.disks.iter().cloned().chain(empty).collect()
    }

    /// What a card can be on: as the form sends it, what it is called, whether it is chosen.
    fn choices(&self, nic: &DefinedNic) -> Vec<(String, String, bool)> {
        let w = self.page.w;
        let networks = self.defined.networks.iter().map(|network| {
            (format!("network {network}"), fill(w.network_n, &[network]), *network == nic.network)
        });
        let pools = self
            .defined
            .pools
            .iter()
            .map(|pool| (format!("pool {pool}"), fill(w.pool_n, &[pool]), *pool == nic.pool));
        let mut choices: Vec<_> = networks.chain(pools).collect();
        // A certain VF, or a network that is not there: it stays so.
        if !nic.name.is_empty() && !choices.iter().any(|(_, _, chosen)| *chosen) {
            choices.insert(0, (String::new(), w.other_card.to_owned(), true));
        }
        choices
    }
}

async fn shown(pages: &Pages, visit: Visit, name: Option<String>) -> Result<Response, Failure> {
    let by = &visit.actor;
    let found = async {
        let text = pages.control.config(by).await?.text;
        let defined = pages.control.defined(by, text, name.clone().unwrap_or_default()).await?;
        Ok::<_, Problem>((defined, pages.control.images(by).await.unwrap_or_default()))
    };
    let (mut defined, images) = match found.await {
        Ok(found) => found,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let guest = match (defined.guest.take(), &name) {
        (Some(guest), _) => guest,
        (None, None) => Definition { vcpus: 1, memory: "1GiB".into(), uefi: true, ..Definition::default() },
        (None, Some(name)) => {
            let problem = Problem::not_found(fill(visit.page.w.no_such_guest, &[name]));
            return Err(visit.failed(problem));
        }
    };
    Ok(render(StatusCode::OK, &FormTemplate { page: visit.page, name, guest, defined, images }))
}

/// The form for a new guest.
pub(super) async fn new(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    shown(&pages, visit, None).await
}

/// The form for one of the file.
pub(super) async fn edit(
    State(pages): State<Pages>,
    Path(name): Path<String>,
    visit: Visit,
) -> Result<Response, Failure> {
    shown(&pages, visit, Some(name)).await
}

/// The file's text with what the form says.
pub(super) async fn put(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    let edit = match read(&posted) {
        Ok(edit) => edit,
        Err(problem) => return Err(posted.failed(problem)),
    };
    pages.review_edit(posted.visit, edit).await
}

/// What the form says.
fn read(posted: &Posted) -> Result<Edit, Problem> {
    let name = posted.get("name").trim().to_owned();
    if posted.get("do") == "remove" {
        return Ok(Edit::RemoveGuest { name });
    }
    let vcpus = posted.get("vcpus").trim().parse();
    let vcpus = vcpus.map_err(|_| Problem::malformed(posted.visit.page.w.vcpus_are_no_number))?;
    let rows = |field: &str, at: usize| posted.all(field).get(at).map_or("", |value| value.trim()).to_owned();
    let count = |field: &str| posted.all(field).len().min(MOST_ROWS);
    let nic = |at| {
        let on = rows("nic-on", at);
        let of = |kind: &str| on.strip_prefix(kind).unwrap_or_default().to_owned();
        DefinedNic { name: rows("nic-name", at), network: of("network "), pool: of("pool ") }
    };
    let disk = |at| DefinedDisk {
        name: rows("disk-name", at),
        path: rows("disk-path", at),
        qcow2: rows("disk-format", at) == "qcow2",
        cdrom: rows("disk-as", at) == "cdrom",
    };
    let uefi = posted.get("boot") == "uefi";
    let of_kernel = |field: &str| if uefi { String::new() } else { posted.get(field).trim().to_owned() };
    Ok(Edit::PutGuest {
        name,
        guest: Definition {
            autostart: posted.get("autostart") == "yes",
            vcpus,
            memory: posted.get("memory").trim().to_owned(),
            uefi,
            kernel: of_kernel("kernel"),
            initrd: of_kernel("initrd"),
            cmdline: of_kernel("cmdline"),
            nics: (0..count("nic-name")).map(nic).filter(|nic| !nic.name.is_empty()).collect(),
            disks: (0..count("disk-name")).map(disk).filter(|disk| !disk.name.is_empty()).collect(),
        },
    })
}
