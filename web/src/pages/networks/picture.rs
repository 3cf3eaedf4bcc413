//! One network as a picture: cards of the host at the left, the bridge, taps and their guests at the right.

use std::fmt::Write as _;

use askama::filters::{Html, escape, urlencode_strict};

use crate::pages::words::Words;
use crate::wire::{Network, Port};

const ROW: usize = 46;
const BOX: usize = 34;

/// The picture, as SVG.
pub(super) fn draw(network: &Network, w: &'static Words) -> String {
    let (guests, cards): (Vec<&Port>, Vec<&Port>) =
        network.ports.iter().partition(|port| port.guest.is_some());
    let rows = guests.len().max(cards.len()).max(1);
    let height = rows * ROW + 8;
    let label = escaped(&format!("{} {}", w.picture_of_network, network.name));
    let mut svg = format!(
        "<svg class=\"picture\" width=\"760\" height=\"{height}\" viewBox=\"0 0 760 {height}\" role=\"group\" aria-label=\"{label}\">"
    );
    // The bridge is as high as what is on it.
    let tall = height - 8;
    for (row, port) in cards.iter().enumerate() {
        let y = row * ROW + 4;
        let _ = write!(svg, "<path class=\"wire {}\" d=\"M200 {m}H270\"/>", state(port), m = y + BOX / 2);
        port_box(&mut svg, (4, y, 196), port);
    }
    for (row, port) in guests.iter().enumerate() {
        let y = row * ROW + 4;
        let m = y + BOX / 2;
        let _ = write!(svg, "<path class=\"wire {c}\" d=\"M390 {m}H440M600 {m}H630\"/>", c = state(port));
        port_box(&mut svg, (440, y, 160), port);
        if let Some((guest, card)) = &port.guest {
            let link = urlencode_strict(guest).map(|link| link.to_string()).unwrap_or_default();
            let _ = write!(
                svg,
                "<a href=\"/guests/{link}\"><rect class=\"box\" x=\"630\" y=\"{y}\" width=\"126\" height=\"{BOX}\" rx=\"4\"/><text x=\"640\" y=\"{}\">{}</text><text class=\"soft mono\" x=\"640\" y=\"{}\">{}</text></a>",
                y + 15,
                escaped(&shortened(guest, 16)),
                y + 28,
                escaped(&shortened(card, 16))
            );
        }
    }
    let middle = height / 2;
    let _ = write!(
        svg,
        "<rect class=\"box\" x=\"270\" y=\"4\" width=\"120\" height=\"{tall}\" rx=\"4\"/><text x=\"330\" y=\"{}\" text-anchor=\"middle\">{}</text><text class=\"soft\" x=\"330\" y=\"{}\" text-anchor=\"middle\">{}</text></svg>",
        middle - 2,
        escaped(&shortened(&network.name, 15)),
        middle + 12,
        escaped(super::kind(network, w)),
    );
    svg
}

fn state(port: &Port) -> &'static str {
    if port.up == Some(true) { "up" } else { "down" }
}

/// A link at a place (left, top) of a width.
fn port_box(svg: &mut String, (x, y, width): (usize, usize, usize), port: &Port) {
    let below = port.vlan.as_deref().or(port.device.as_deref()).unwrap_or_default();
    let room = width.saturating_sub(16) / 7;
    let (name_at, below_at) = if below.is_empty() { (y + 21, 0) } else { (y + 15, y + 28) };
    let _ = write!(
        svg,
        "<rect class=\"box\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BOX}\" rx=\"4\"/><text class=\"mono\" x=\"{}\" y=\"{name_at}\">{}</text>",
        x + 10,
        escaped(&shortened(&port.link, room))
    );
    if !below.is_empty() {
        let _ = write!(
            svg,
            "<text class=\"soft mono\" x=\"{}\" y=\"{below_at}\">{}</text>",
            x + 10,
            escaped(&shortened(below, room))
        );
    }
}

fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn escaped(text: &str) -> String {
    escape(text, Html).map(|text| text.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::words::EN;
    use crate::testing;

    #[test]
    fn all_that_is_plugged_in_is_there() {
        for network in testing::networks() {
            let svg = draw(&network, &EN);
            assert!(svg.contains(&network.name));
            for port in &network.ports {
                assert!(svg.contains(&port.link), "{}", port.link);
                if let Some((guest, _)) = &port.guest {
                    assert!(svg.contains(&format!("/guests/{guest}")));
                }
            }
        }
    }
}
