//! Networks: a picture of each, from the card over the bridge and the taps to the guests.

mod picture;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::page::{Failure, html, render};
use super::words::Words;
use super::{Page, Pages, Visit};
use crate::wire::{Network, NetworkKind};

#[derive(Template)]
#[template(path = "networks.html", blocks = ["live"])]
struct NetworksTemplate {
    page: Page,
    networks: Vec<Network>,
}

fn kind(network: &Network, w: &'static Words) -> &'static str {
    match network.kind {
        NetworkKind::Bridge => w.bridge,
        NetworkKind::Nat => w.nat,
        NetworkKind::Macvtap => w.macvtap,
        NetworkKind::Vlan => w.vlan,
        NetworkKind::Bond => w.bond,
    }
}

fn picture(network: &Network, w: &'static Words) -> String {
    picture::draw(network, w)
}

/// All of them.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let networks = match pages.control.networks(&visit.actor).await {
        Ok(networks) => networks,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let live = visit.live;
    let template = NetworksTemplate { page: visit.page, networks };
    if live {
        return Ok(html(StatusCode::OK, template.as_live().render().unwrap_or_default()));
    }
    Ok(render(StatusCode::OK, &template))
}
