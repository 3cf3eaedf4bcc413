//! What running guests do, as small plots. Samples are taken while somebody looks, and only then.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::shape;
use crate::control::{Actor, Control};
use crate::wire::{Guest, GuestState, GuestStats};

/// Samples that are kept of a guest.
const KEPT: usize = 60;
/// Between two samples there is at least this.
const APART: Duration = Duration::from_millis(1500);
/// After this long without one, those before are of another time.
const OLD: Duration = Duration::from_secs(30);

/// What was counted of a guest at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu_ms: u64,
    resident: u64,
    exits: u64,
    interrupts: u64,
    traffic: u64,
}

impl Sample {
    fn of(stats: &GuestStats) -> Self {
        let total = |of: &mut dyn Iterator<Item = u64>| of.fold(0, u64::saturating_add);
        let all = stats.counters.values().flatten();
        let traffic = |unit: &str| {
            let wanted = [format!("{unit}-received"), format!("{unit}-sent")];
            let mut counted = all.clone().filter(|(key, _)| wanted.contains(key)).map(|(_, count)| *count);
            total(&mut counted)
        };
        Self {
            at: Instant::now(),
            cpu_ms: stats.cpu_ms,
            resident: stats.resident,
            // KVM counts all of them in one, and each cause besides.
            exits: stats
                .exits
                .get("exits")
                .copied()
                .unwrap_or_else(|| total(&mut stats.exits.values().copied())),
            interrupts: total(&mut stats.interrupts.values().copied()),
            traffic: traffic("packets"),
        }
    }
}

/// The samples of all guests.
#[derive(Default)]
pub(crate) struct Plots(Mutex<BTreeMap<String, VecDeque<Sample>>>);

/// One quantity of a guest's: what it is now, and how it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plot {
    /// Now, with its unit.
    pub(crate) now: String,
    /// An SVG picture.
    pub(crate) svg: String,
}

/// All that is plotted of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plotted {
    pub(crate) cpu: Plot,
    pub(crate) memory: Plot,
    pub(crate) exits: Plot,
    pub(crate) interrupts: Plot,
    pub(crate) traffic: Plot,
}

impl Plots {
    /// Takes a sample of each guest that runs, where the last one is some time ago, and draws them.
    pub(crate) async fn look(
        &self,
        control: &dyn Control,
        by: &Actor,
        guests: &[Guest],
    ) -> BTreeMap<String, Plotted> {
        let running: Vec<&Guest> = guests.iter().filter(|guest| guest.state == GuestState::Running).collect();
        let due: Vec<&Guest> = running.iter().copied().filter(|guest| self.is_due(&guest.name)).collect();
        let asked = due.iter().map(|guest| control.guest_stats(by, guest.name.clone()));
        let answers = join_all(asked).await;
        let Ok(mut kept) = self.0.lock() else { return BTreeMap::new() };
        kept.retain(|name, _| running.iter().any(|guest| guest.name == *name));
        for (guest, stats) in due.iter().zip(answers) {
            // One that has ended meanwhile has no numbers.
            let Ok(stats) = stats else { continue };
            let samples = kept.entry(guest.name.clone()).or_default();
            let sample = Sample::of(&stats);
            let fits = samples
                .back()
                .is_none_or(|last| sample.at.duration_since(last.at) < OLD && sample.cpu_ms >= last.cpu_ms);
            if !fits {
                samples.clear();
            }
            if samples.len() >= KEPT {
                samples.pop_front();
            }
            samples.push_back(sample);
        }
        let plotted = |guest: &&Guest| {
            kept.get(&guest.name).map(|samples| (guest.name.clone(), plotted(samples, guest)))
        };
        running.iter().filter_map(plotted).collect()
    }

    fn is_due(&self, guest: &str) -> bool {
        let Ok(kept) = self.0.lock() else { return false };
        kept.get(guest).and_then(VecDeque::back).is_none_or(|last| last.at.elapsed() >= APART)
    }
}

fn plotted(samples: &VecDeque<Sample>, guest: &Guest) -> Plotted {
    let rates = |of: fn(&Sample) -> u64| -> Vec<u64> {
        let pairs = samples.iter().zip(samples.iter().skip(1));
        pairs
            .map(|(before, after)| {
                let ms = u64::try_from(after.at.duration_since(before.at).as_millis()).unwrap_or(u64::MAX);
                of(after).saturating_sub(of(before)).saturating_mul(1000) / ms.max(1)
            })
            .collect()
    };
    let a_second = |of| {
        let rates = rates(of);
        Plot {
            now: rates.last().map_or("…".into(), |now| format!("{}/s", shape::rate(*now))),
            svg: draw(&rates, None),
        }
    };
    // Milliseconds a second of one processor: a tenth of that is percent.
    let cpu: Vec<u64> = rates(|sample| sample.cpu_ms).into_iter().map(|ms| ms / 10).collect();
    let memory: Vec<u64> = samples.iter().map(|sample| sample.resident).collect();
    Plotted {
        cpu: Plot {
            now: cpu.last().map_or("…".into(), |now| format!("{now} %")),
            svg: draw(&cpu, Some(u64::from(guest.vcpus).saturating_mul(100))),
        },
        memory: Plot {
            now: memory.last().map_or("…".into(), |now| shape::bytes(*now)),
            svg: draw(&memory, Some(guest.memory)),
        },
        exits: a_second(|sample| sample.exits),
        interrupts: a_second(|sample| sample.interrupts),
        traffic: a_second(|sample| sample.traffic),
    }
}

/// A line of up to [`KEPT`] values, the newest at the right; the top is at least `full`.
fn draw(values: &[u64], full: Option<u64>) -> String {
    const HEIGHT: u64 = 30;
    let top = values.iter().copied().max().unwrap_or(0).max(full.unwrap_or(0)).max(1);
    let mut line = String::new();
    let first = KEPT.saturating_sub(values.len());
    for (at, value) in values.iter().enumerate() {
        let height = u128::from(*value) * u128::from(HEIGHT - 2) / u128::from(top);
        let y = u128::from(HEIGHT - 1) - height;
        let _ = write!(line, "{}{} {y}", if at == 0 { 'M' } else { 'L' }, (first + at) * 2);
    }
    let mut svg = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><line x1=\"0\" y1=\"29.5\" x2=\"{}\" y2=\"29.5\"/>",
        (KEPT - 1) * 2,
        (KEPT - 1) * 2
    );
    if values.len() > 1 {
        let _ = write!(
            svg,
            "<path class=\"fill\" d=\"{line}L{} {HEIGHT}L{} {HEIGHT}Z\"/><path class=\"line\" d=\"{line}\"/>",
            (KEPT - 1) * 2,
            first * 2
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_stays_inside_its_picture() {
        for values in [vec![], vec![1], vec![0, u64::MAX, 5], (0..60).collect::<Vec<u64>>()] {
            let svg = draw(&values, Some(10));
            let numbers =
                svg.split("d=\"").nth(1).and_then(|path| path.split('"').next()).unwrap_or_default();
            for point in numbers.split(['M', 'L', 'Z']).filter(|point| !point.is_empty()) {
                let (x, y) = point.split_once(' ').unwrap();
                assert!(x.parse::<u32>().unwrap() <= 118 && y.parse::<u32>().unwrap() <= 30, "{point}");
            }
            assert_eq!(svg.contains("class=\"line\""), values.len() > 1);
        }
    }
}
