//! What is measured, for Prometheus (text format 0.0.4).

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::answer::By;
use crate::control::{Problem, Shared};
use crate::wire::{ChangeState, GuestState, GuestStats, Overview};

/// All that is measured.
#[utoipa::path(get, path = "/metrics", tag = "measured", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn scrape(State(control): State<Shared>, By(by): By) -> Result<impl IntoResponse, Problem> {
    let overview = control.overview(&by).await?;
    let mut stats = Vec::new();
    for guest in overview.guests.iter().filter(|guest| guest.pid.is_some()) {
        // One that has just ended has none.
        if let Ok(of_guest) = control.guest_stats(&by, guest.name.clone()).await {
            stats.push((guest.name.clone(), of_guest));
        }
    }
    let text = text(&overview, &stats);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// One after the other, each with what it is.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn text(overview: &Overview, stats: &[(String, GuestStats)]) -> String {
    let mut page = Page::default();
    page.family("throughway_build_info", "gauge", "Throughway, by its version.");
    page.sample("throughway_build_info", &[("version", &overview.version)], 1);
    page.family("throughway_host_memory_bytes", "gauge", "Memory of the host.");
    page.sample("throughway_host_memory_bytes", &[], overview.memory);
    page.family(
        "throughway_host_memory_available_bytes",
        "gauge",
        "Memory of the host that could still be had.",
    );
    page.sample("throughway_host_memory_available_bytes", &[], overview.memory_available);
    if let Some(drift) = &overview.drift {
        page.family("throughway_drift_fields", "gauge", "Fields of the host that are not as the file says.");
        page.sample("throughway_drift_fields", &[], drift.len());
    }
    page.family("throughway_device_faults", "gauge", "Devices of guests that something is wrong with.");
    page.sample("throughway_device_faults", &[], overview.device_faults.len());
    let waits = overview.change.as_ref().is_some_and(|change| change.state == ChangeState::Waiting);
    page.family("throughway_change_waiting", "gauge", "Whether a change waits to be confirmed.");
    page.sample("throughway_change_waiting", &[], u8::from(waits));
    page.family("throughway_guest_up", "gauge", "Whether a guest runs.");
    for guest in &overview.guests {
        let up = matches!(guest.state, GuestState::Running | GuestState::Paused | GuestState::Stopping);
        page.sample("throughway_guest_up", &[("guest", &guest.name)], u8::from(up));
    }
    page.family("throughway_guest_failures", "gauge", "Failures of a guest in a row.");
    for guest in &overview.guests {
        page.sample("throughway_guest_failures", &[("guest", &guest.name)], guest.failures);
    }
    of_guests(&mut page, stats);
    page.0
}

fn of_guests(page: &mut Page, stats: &[(String, GuestStats)]) {
    page.family("throughway_guest_cpu_seconds_total", "counter", "Processor time of a guest's process.");
    for (guest, stats) in stats {
        let seconds = format!("{}.{:03}", stats.cpu_ms / 1000, stats.cpu_ms % 1000);
        page.sample("throughway_guest_cpu_seconds_total", &[("guest", guest)], seconds);
    }
    page.family(
        "throughway_guest_resident_bytes",
        "gauge",
        "Memory of a guest's process that is in RAM, guest RAM included.",
    );
    for (guest, stats) in stats {
        page.sample("throughway_guest_resident_bytes", &[("guest", guest)], stats.resident);
    }
    page.family(
        "throughway_guest_pinned_bytes",
        "gauge",
        "Guest RAM that is pinned for functions of the host.",
    );
    for (guest, stats) in stats {
        page.sample("throughway_guest_pinned_bytes", &[("guest", guest)], stats.pinned);
    }
    page.family(
        "throughway_guest_kvm_events_total",
        "counter",
        "What KVM has counted, over all vCPUs, by KVM's names.",
    );
    for (guest, stats) in stats {
        for (event, count) in &stats.exits {
            page.sample("throughway_guest_kvm_events_total", &[("guest", guest), ("event", event)], count);
        }
    }
    page.family("throughway_guest_interrupts_total", "counter", "Interrupts of a guest's devices.");
    for (guest, stats) in stats {
        for (device, count) in &stats.interrupts {
            page.sample("throughway_guest_interrupts_total", &[("guest", guest), ("device", device)], count);
        }
    }
    page.family(
        "throughway_guest_device_events_total",
        "counter",
        "What a guest's devices have counted, by name.",
    );
    for (guest, stats) in stats {
        for (device, counters) in &stats.counters {
            for (event, count) in counters {
                let labels = [("guest", guest.as_str()), ("device", device), ("event", event)];
                page.sample("throughway_guest_device_events_total", &labels, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.sample("a", &[("x", "1\"\\\n"), ("y", "")], 2);
        page.sample("b", &[], "0.5");
        assert_eq!(page.0, "a{x=\"1\\\"\\\\\\n\",y=\"\"} 2\nb 0.5\n");
    }
}
