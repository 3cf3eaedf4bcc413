//! An appliance in memory: it answers as a box with four guests would, and changes as it is told to. For tests of what is in
//! front of it, and to look at the pages.

mod recorded;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::broadcast;

use crate::control::{Actor, Answer, Console, Control, Problem, Request, Role, Upload, Verb};
use crate::wire::{
    AuditEntry, Change, ChangeState, Checked, Config, Diagnostic, Event, Guest, GuestState, GuestStats, Log,
    Planned, Severity, Step,
};

pub use recorded::{devices, doctor, drift, guests, images, networks, text};

/// A box in memory.
pub struct Recorded {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    since: Instant,
}

struct State {
    guests: Vec<Guest>,
    text: String,
    version: u64,
    changes: Vec<Change>,
    audit: Vec<AuditEntry>,
}

impl Default for Recorded {
    fn default() -> Self {
        let state = State {
            guests: guests(),
            text: text().into(),
            version: 1,
            changes: recorded::changes(),
            audit: recorded::audit(),
        };
        Self { state: Mutex::new(state), events: broadcast::Sender::new(64), since: Instant::now() }
    }
}

/// Somebody with a role, who comes from the box itself.
pub fn actor(role: Role) -> Actor {
    let name = match role {
        Role::Viewer => "vera",
        Role::Operator => "otto",
        Role::Admin => "ada",
    };
    Actor {
        name: name.into(),
        role,
        assign_devices: role == Role::Admin,
        from: "127.0.0.1".into(),
        token: None,
    }
}

impl Recorded {
    /// With no guests, no file and nothing done yet.
    pub fn empty() -> Self {
        let new = Self::default();
        if let Ok(mut state) = new.state.lock() {
            state.guests.clear();
            state.text.clear();
            state.changes.clear();
            state.audit.clear();
        }
        new
    }

    fn answer(&self, by: &Actor, request: Request) -> Result<Answer, Problem> {
        if !by.may(request.right()) {
            return Err(Problem::forbidden(format!("{} may not do that", by.name)));
        }
        let mut state =
            self.state.lock().map_err(|_| Problem::fault("A test has failed while it held this"))?;
        let seconds = self.since.elapsed().as_millis();
        Ok(match request {
            Request::Overview {} => Answer::Overview(recorded::overview(&state.guests, &state.changes)),
            Request::Devices {} => Answer::Devices(devices()),
            Request::Networks {} => Answer::Networks(networks()),
            Request::Guests {} => Answer::Guests(state.guests.clone()),
            Request::GuestStats { guest } => {
                Answer::GuestStats(stats(&guest, u64::try_from(seconds).unwrap_or(0)))
            }
            Request::Act { guest, verb } => {
                let found = state.guests.iter_mut().find(|one| one.name == guest);
                let found = found.ok_or_else(|| Problem::not_found(format!("There is no guest {guest}")))?;
                act(found, verb)?;
                let _ = self.events.send(Event::Guest(found.clone()));
                state.note(by, "act", &format!("{guest}: {verb:?}"));
                Answer::Act(())
            }
            Request::Config {} => Answer::Config(state.config()),
            Request::Check { text } => Answer::Check(Checked { diagnostics: problems(&text) }),
            Request::Edit { text, edit } => {
                let line = serde_json::to_string(&edit).map_err(|error| Problem::fault(error.to_string()))?;
                Answer::Edit(format!("{text}# edited: {line}\n"))
            }
            Request::Defined { guest, .. } => Answer::Defined(recorded::defined(&guest)),
            Request::Plan { text } => {
                let diagnostics = problems(&text);
                if diagnostics.iter().any(|one| one.severity == Severity::Error) {
                    return Err(Problem::refused("The file has errors", diagnostics));
                }
                Answer::Plan(planned(&state.text, &text))
            }
            Request::Save { text, tag } => {
                if tag != state.tag() {
                    return Err(Problem::stale("Somebody else has changed the file meanwhile"));
                }
                state.text = text;
                state.version += 1;
                Answer::Save(state.config())
            }
            Request::Apply { tag } => {
                if tag != state.tag() {
                    return Err(Problem::stale("Somebody else has changed the file meanwhile"));
                }
                let id = state.changes.first().map_or(1, |change| change.id + 1);
                let change = recorded::change(id, &by.name, ChangeState::Waiting);
                state.changes.insert(0, change.clone());
                let _ = self.events.send(Event::Change(change));
                Answer::Apply(id)
            }
            Request::Confirm { change } => {
                let found = state.changes.iter_mut().find(|one| one.id == change);
                let found = found.ok_or_else(|| Problem::not_found("There is no such change"))?;
                if found.state != ChangeState::Waiting {
                    return Err(Problem::conflict("This change does not wait"));
                }
                found.state = ChangeState::Committed;
                Answer::Confirm(())
            }
            Request::Rollback {} => {
                let Some(last) = state.changes.first_mut() else {
                    return Err(Problem::conflict("There is nothing to put back"));
                };
                last.state = ChangeState::Reverted;
                Answer::Rollback(last.id)
            }
            Request::Changes {} => Answer::Changes(state.changes.clone()),
            Request::Drift {} => Answer::Drift(drift()),
            Request::Doctor {} => Answer::Doctor(doctor()),
            Request::Log { guest, .. } => Answer::Log(log(guest)),
            Request::Audit { before, limit } => {
                let older = state.audit.iter().filter(|entry| before.is_none_or(|before| entry.id < before));
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                Answer::Audit(older.take(limit).cloned().collect())
            }
            Request::Images {} => Answer::Images(images()),
            Request::RemoveImage { name } => {
                let image = images().into_iter().find(|image| image.name == name);
                let image = image.ok_or_else(|| Problem::not_found("There is no such image"))?;
                if let Some(guest) = image.guests.first() {
                    return Err(Problem::conflict(format!("{guest} has it")));
                }
                Answer::RemoveImage(())
            }
            Request::FinishUpload { .. } => Answer::FinishUpload(images().swap_remove(0)),
            Request::GiveUpUpload { .. } => Answer::GiveUpUpload(()),
            Request::Note { what, detail } => {
                state.note(by, &what, &detail);
                Answer::Note(())
            }
        })
    }
}

impl State {
    fn tag(&self) -> String {
        format!("v{}", self.version)
    }

    fn config(&self) -> Config {
        let path = "/etc/throughway/appliance.yaml".into();
        Config { path, text: self.text.clone(), tag: self.tag(), applied: self.version == 1 }
    }

    fn note(&mut self, by: &Actor, what: &str, detail: &str) {
        let id = self.audit.first().map_or(1, |entry| entry.id + 1);
        self.audit.insert(0, recorded::entry(id, &by.name, what, detail));
    }
}

impl Control for Recorded {
    fn ask(&self, by: &Actor, request: Request) -> BoxFuture<'_, Result<Answer, Problem>> {
        let answer = self.answer(by, request);
        async move { answer }.boxed()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Says hello, and says what is typed again.
    fn console(
        &self,
        _by: &Actor,
        guest: &str,
        _writes: bool,
    ) -> BoxFuture<'_, Result<Box<dyn Console>, Problem>> {
        let guest = guest.to_owned();
        async move {
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let hello = format!("\x1b[1;32m{guest}\x1b[0m login: 你好 \x1b[7mroot\x1b[0m\r\n");
                if far.write_all(hello.as_bytes()).await.is_ok() {
                    let (mut from, mut to) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                }
            });
            Ok(Box::new(near) as Box<dyn Console>)
        }
        .boxed()
    }

    /// What comes is in memory, and forgotten.
    fn upload(&self, _by: &Actor, name: &str, _length: u64) -> BoxFuture<'_, Result<Upload, Problem>> {
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
        let upload = file
            .map(|file| Upload { id: 1, file: File::from(file) })
            .map_err(|error| Problem::fault(format!("Making memory for {name}: {error}")));
        async move { upload }.boxed()
    }

    fn is_there(&self) -> bool {
        true
    }
}

fn act(guest: &mut Guest, verb: Verb) -> Result<(), Problem> {
    let (state, pid) = match verb {
        Verb::Start if guest.pid.is_some() => return Err(Problem::conflict("It runs already")),
        Verb::Start | Verb::Resume | Verb::Reset => (GuestState::Running, Some(4711)),
        Verb::Stop | Verb::Kill | Verb::PowerButton => (GuestState::Off, None),
        Verb::Pause => (GuestState::Paused, guest.pid),
    };
    (guest.state, guest.pid, guest.detail) = (state, pid, None);
    guest.uptime_ms = pid.map(|_| 1000);
    Ok(())
}

/// Numbers that grow with time, each guest's in its own way.
fn stats(guest: &str, ms: u64) -> GuestStats {
    let seed = guest.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 7 + 1;
    let wave: u64 = (0..ms / 500).map(|tick| tick / 3 * seed % 11 + 1).sum();
    let counted = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
    };
    GuestStats {
        cpu_ms: wave * 40 * seed,
        resident: (300 << 20) + (ms % 9000) * (seed << 10),
        pinned: if seed.is_multiple_of(2) { 1 << 30 } else { 0 },
        exits: counted(&[
            ("exits", wave * 4000),
            ("halt_exits", wave * 2100),
            ("io_exits", wave * 900),
            ("mmio_exits", wave * 40),
        ]),
        interrupts: counted(&[("nic lan", wave * 700), ("disk root", wave * 20)]),
        counters: BTreeMap::from([(
            "nic lan".into(),
            counted(&[
                ("packets-received", wave * 6000),
                ("packets-sent", wave * 5200),
                ("packets-dropped", 3),
            ]),
        )]),
    }
}

/// A text is wrong where it says `wrong`, and doubtful where it says `doubtful`.
fn problems(text: &str) -> Vec<Diagnostic> {
    let of = |severity, word: &str| -> Vec<Diagnostic> {
        let lines = text.lines().enumerate().filter(|(_, line)| line.contains(word));
        lines
            .map(|(at, line)| Diagnostic {
                severity,
                file: "appliance.yaml".into(),
                line: at + 1,
                column: line.find(word).unwrap_or(0) + 1,
                message: format!("Unknown key `{word}`"),
                help: Some("known here: autostart, boot, cpus".into()),
                source: Some(line.into()),
            })
            .collect()
    };
    [of(Severity::Error, "wrong"), of(Severity::Warning, "doubtful")].concat()
}

fn planned(old: &str, new: &str) -> Planned {
    let step = |text: &str, blast: &[&str]| Step {
        text: text.into(),
        blast_radius: blast.iter().map(|one| (*one).to_owned()).collect(),
    };
    let steps = if old == new {
        Vec::new()
    } else {
        vec![
            step(
                "sriov lan-pf (0000:01:00.0): num-vfs 4 -> 8",
                &["VFs 0 to 3 are reset", "vf 1 is held by guest firewall"],
            ),
            step("network br0: mtu 1500 -> 9000", &[]),
        ]
    };
    Planned { steps, diagnostics: problems(new), wants_confirmation: old != new }
}

fn log(guest: Option<String>) -> Log {
    let name = guest.unwrap_or_else(|| "daemon".into());
    let line = |at: usize| format!("2026-11-22T11:{at:02}:00Z INFO {name}: line {at} of a log <&>");
    Log { lines: (0..60).map(line).collect(), more: true }
}
