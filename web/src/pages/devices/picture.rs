//! The tree of functions as a picture: a line a function, below the port that it is behind; its IOMMU group as a colour and a
//! number, its verdict as a shape.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use askama::filters::{Html, escape};

use super::{anchor, colour, verdict};
use crate::pages::words::{Words, fill};
use crate::wire::{Device, Verdict};

/// Height of a line.
const LINE: usize = 34;
/// How much deeper each level is.
const STEP: usize = 26;
const WIDTH: usize = 860;
/// Deeper than this is drawn at this depth.
const DEEPEST: usize = 8;

struct Placed<'a> {
    device: &'a Device,
    depth: usize,
    /// The line of its parent.
    parent: Option<usize>,
}

/// The picture, as SVG.
pub(super) fn draw(devices: &[Device], w: &'static Words) -> String {
    let placed = place(devices);
    let height = placed.len() * LINE + 4;
    let title = escaped(w.picture_of_devices);
    let mut svg = format!(
        "<svg class=\"picture\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"group\" aria-label=\"{title}\">"
    );
    for (line, one) in placed.iter().enumerate() {
        if let Some(parent) = one.parent {
            let x = (one.depth.saturating_sub(1)) * STEP + 14;
            let (from, to) = (parent * LINE + 30, line * LINE + 17);
            let _ = write!(svg, "<path class=\"bus\" d=\"M{x} {from}V{to}H{}\"/>", one.depth * STEP + 4);
        }
    }
    for (line, one) in placed.iter().enumerate() {
        function(&mut svg, devices, one, line * LINE + 3, w);
    }
    svg.push_str("</svg>");
    svg
}

fn function(svg: &mut String, devices: &[Device], placed: &Placed, y: usize, w: &'static Words) {
    let device = placed.device;
    let x = placed.depth * STEP + 4;
    let width = WIDTH.saturating_sub(x + 4);
    let (class, word) = verdict(&device.verdict, w);
    let group = colour(devices, device);
    let label = if device.bridge {
        format!("{} {}", device.address, device.name)
    } else {
        format!("{} {}: {word}", device.address, device.name)
    };
    let label = escaped(&label);
    if !device.bridge {
        let _ = write!(svg, "<a href=\"#{}\" aria-label=\"{label}\">", anchor(&device.address));
    }
    let kind = if device.iommu_group.is_some() { "group" } else { "box" };
    let _ = write!(
        svg,
        "<g class=\"{group}\"><rect class=\"{kind}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"28\" rx=\"4\"><title>{label}</title></rect>"
    );
    if !device.bridge {
        let (mx, my) = (x + 9, y + 9);
        let shape = match device.verdict {
            Verdict::Ready => {
                format!("<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"5\"/>", mx + 5, my + 5)
            }
            Verdict::PossibleAfter => {
                format!("<path class=\"{class}\" d=\"M{} {my}l6 10h-12z\"/>", mx + 5)
            }
            Verdict::Impossible => {
                format!("<path class=\"{class}\" d=\"M{} {}l6 6-6 6-6-6z\"/>", mx + 5, my - 1)
            }
        };
        svg.push_str(&shape);
    }
    // Letters are about 7 wide, those of addresses too; what does not fit is in the list below.
    let text = x + 28;
    let room = WIDTH.saturating_sub(text + 96 + 110) / 7;
    let _ = write!(
        svg,
        "<text class=\"mono\" x=\"{text}\" y=\"{}\">{}</text><text x=\"{}\" y=\"{}\"{}>{}</text>",
        y + 18,
        escaped(&device.address),
        text + 96,
        y + 18,
        if device.bridge { " class=\"soft\"" } else { "" },
        escaped(&shortened(&device.name, room))
    );
    if let Some(group) = device.iommu_group {
        let words = fill(w.group_n, &[group.to_string()]);
        let _ = write!(
            svg,
            "<text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - 14,
            y + 18,
            escaped(&words)
        );
    }
    svg.push_str("</g>");
    if !device.bridge {
        svg.push_str("</a>");
    }
}

/// In the order of a tree: each below its parent. Whose parent is not there, or is below itself, is at the top.
fn place(devices: &[Device]) -> Vec<Placed<'_>> {
    let known = |address: &str| devices.iter().any(|device| device.address == address);
    let mut below: BTreeMap<Option<&str>, Vec<&Device>> = BTreeMap::new();
    for device in devices {
        let parent = device.parent.as_deref().filter(|parent| known(parent) && *parent != device.address);
        below.entry(parent).or_default().push(device);
    }
    for siblings in below.values_mut() {
        siblings.sort_by(|a, b| a.address.cmp(&b.address));
    }
    let mut placed: Vec<Placed> = Vec::with_capacity(devices.len());
    let mut next: Vec<(&Device, usize, Option<usize>)> = Vec::new();
    let of = |parent, depth: usize, line| {
        let children = below.get(&parent).into_iter().flatten().rev();
        children.map(move |device| (*device, depth.min(DEEPEST), line)).collect::<Vec<_>>()
    };
    next.extend(of(None, 0, None));
    while let Some((device, depth, parent)) = next.pop() {
        let line = placed.len();
        placed.push(Placed { device, depth, parent });
        next.extend(of(Some(&device.address), depth + 1, Some(line)));
    }
    placed
}

fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
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
    fn each_function_is_there_once_below_its_port() {
        let devices = testing::devices();
        let placed = place(&devices);
        assert_eq!(placed.len(), devices.len());
        for one in &placed {
            let parent = one.parent.map(|line| placed[line].device.address.as_str());
            assert_eq!(parent, one.device.parent.as_deref(), "{}", one.device.address);
        }
        let svg = draw(&devices, &EN);
        assert!(devices.iter().all(|device| svg.contains(&device.address)));
    }

    #[test]
    fn names_of_a_device_are_text() {
        let mut devices = testing::devices();
        devices[0].name = "<script>&\"".into();
        devices[0].parent = Some(devices[0].address.clone());
        let svg = draw(&devices, &EN);
        assert!(!svg.contains("<script>"));
    }
}
