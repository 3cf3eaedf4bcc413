//! The box itself: the overview, whether it has drifted, what it is fit for.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use web::Problem;
use web::wire;

use super::{Admin, Look, Parts, fault, told};
use crate::apply::{self, History, Host, Ledger, State, originals};
use crate::config::{self, Config, Document};
use crate::doctor::{Facts, Health, examine};
use crate::drift::drifts;
use crate::host::{HostState, memory_available};

/// How long a look at the host is good for where nobody asks for it by itself.
const FRESH: Duration = Duration::from_secs(20);

impl Parts {
    /// The file that holds; one that asks for nothing where there is none.
    pub(super) fn holds(&self) -> Config {
        let text = self.applied.borrow().text.clone().unwrap_or_default();
        config::load_all(&Document { name: String::new(), text }).0.unwrap_or_default()
    }

    /// The host now, as far as the file that holds needs it.
    pub(super) fn read(&self) -> Result<(Config, HostState), Problem> {
        let (config, place) = (self.holds(), Host::at(&self.state));
        let mut host = HostState::read_all(&place, &Ledger::at(&self.state)).map_err(fault)?;
        host.recognize(&place, &config).map_err(fault)?;
        Ok((config, host))
    }
}

impl Admin {
    pub(super) async fn overview(&self) -> Result<wire::Overview, Problem> {
        let guests = self.guests().await;
        let drift = self.recent_drift().await;
        let changes = self.changes().await?;
        let pending = |change: &wire::Change| {
            matches!(change.state, wire::ChangeState::Applying | wire::ChangeState::Waiting)
        };
        let change = changes.into_iter().find(pending);
        let system = rustix::system::uname();
        let info = rustix::system::sysinfo();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let device_faults = guests
            .iter()
            .filter(|guest| guest.failures > 0 && guest.devices.iter().any(|device| device.passthrough))
            .filter_map(|guest| Some(format!("guest `{}`: {}", guest.name, guest.detail.as_ref()?)))
            .collect();
        Ok(wire::Overview {
            host: system.nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            uptime: u64::try_from(info.uptime).unwrap_or(0),
            processors: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            load: load.split_whitespace().next().unwrap_or("0").to_owned(),
            memory: info.totalram.saturating_mul(info.mem_unit.into()),
            memory_available: memory_available(Path::new("/proc")),
            guests,
            drift,
            change,
            device_faults,
        })
    }

    /// Where the host is not as the file says; none where nothing is applied, or while it is being changed.
    pub(super) async fn drift(&self) -> Result<Option<Vec<wire::Drift>>, Problem> {
        let noted = *self.0.parts.noted.borrow();
        let found = self
            .reading(|parts| {
                let records = History::at(&parts.state).records().map_err(fault)?;
                let changing = |record: &apply::Record| match &record.state {
                    State::Applying { holder } | State::Waiting { holder, .. } => holder.is_alive(),
                    State::Committed | State::Reverted { .. } => false,
                };
                if parts.applied.borrow().text.is_none() || records.iter().any(changing) {
                    return Ok(None);
                }
                let (config, host) = parts.read()?;
                let drift = |drift: crate::drift::Drift| wire::Drift {
                    object: drift.object,
                    field: drift.field,
                    expected: drift.expected,
                    actual: drift.actual,
                };
                let found = drifts(&config, &host, &originals(&records));
                Ok(Some(found.into_iter().map(drift).collect::<Vec<_>>()))
            })
            .await?;
        if let Ok(mut kept) = self.0.drift.lock() {
            *kept = Some(Look { when: Instant::now(), noted, found: found.clone() });
        }
        Ok(found)
    }

    /// The same, as it was a moment ago.
    async fn recent_drift(&self) -> Option<Vec<wire::Drift>> {
        let noted = *self.0.parts.noted.borrow();
        let kept = self.0.drift.lock().ok().and_then(|kept| kept.clone());
        match kept {
            Some(look) if look.noted == noted && look.when.elapsed() < FRESH => look.found,
            _ => match self.drift().await {
                Ok(found) => found,
                Err(problem) => {
                    tracing::debug!("Comparing the host: {problem}");
                    None
                }
            },
        }
    }

    pub(super) async fn doctor(&self) -> Result<wire::Doctor, Problem> {
        self.reading(|parts| {
            let (config, host) = parts.read()?;
            let report = examine(&Facts::read(Path::new("/")), &host, &config);
            let finding = |finding: crate::doctor::Finding| wire::Finding {
                health: match finding.health {
                    Health::Good => wire::Health::Good,
                    Health::Fair => wire::Health::Fair,
                    Health::Bad => wire::Health::Bad,
                },
                message: finding.message,
                help: finding.help,
            };
            Ok(wire::Doctor {
                findings: report.findings.into_iter().map(finding).collect(),
                add_to_cmdline: report.edit.map(|edit| edit.to_string()),
            })
        })
        .await
    }

    /// Changes of the host, newest first.
    pub(super) async fn changes(&self) -> Result<Vec<wire::Change>, Problem> {
        self.beside(|parts| {
            let records = History::at(&parts.state).records().map_err(fault)?;
            Ok(told::changes(&records).into_iter().rev().collect())
        })
        .await
    }
}
