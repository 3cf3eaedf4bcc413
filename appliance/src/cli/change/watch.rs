//! `throughway status --watch`: each field that drifts from the file, as it does, and when it is as it should be again.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::status::NO_FILE;
use super::{Failure, Place};
use crate::apply::{self, Record, State};
use crate::cli::exit::Exit;
use crate::cli::terminal::catch;
use crate::config;
use crate::drift::{Drift, drifts};
use crate::watch::{Watch, Woken};

/// How often is looked whether a change that is being done is done.
const CHANGING: Duration = Duration::from_millis(300);
/// How often the host is read when it changes while it is read, and after which pause.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What is told.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
enum Event<'a> {
    /// The host was read, and is as a change made it.
    InSync { change: u64 },
    /// A field is not as the file says.
    Drift(&'a Drift),
    /// It is again.
    Gone(&'a Drift),
    /// A change is being done or waits to be confirmed; the host is compared afterwards.
    Changing { change: u64 },
    /// No file was applied.
    NothingApplied,
    /// The host could not be read or compared: nobody knows.
    Unknown { why: String },
}

#[derive(Serialize)]
struct Told<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    NothingApplied,
    Changing(u64),
    Compared { change: u64, drifts: Vec<Drift> },
    Unknown(String),
}

/// Watches until a signal, or until nobody reads what it says.
pub(super) fn watch(place: &Place, every: Duration, json: bool) -> Result<Exit, Failure> {
    let stop = catch(&[SIGINT, SIGTERM, SIGHUP]).context("Catching signals")?;
    // Before the first look: what changes after it is told.
    let watch = Watch::open()?;
    let mut before = None;
    loop {
        let now = look(place);
        let told = news(before.as_ref(), &now).iter().try_for_each(|event| tell(event, json));
        let pause = if matches!(now, Look::Changing(_)) { CHANGING } else { every };
        let exit = exit(&now);
        before = Some(now);
        if told.is_err() {
            return Ok(exit);
        }
        let woken = watch.wait(pause, stop.as_fd()).context("Waiting for changes of the host")?;
        if woken == Woken::Stopped {
            return Ok(exit);
        }
    }
}

/// As `status` ends.
fn exit(look: &Look) -> Exit {
    match look {
        Look::NothingApplied => Exit::Success,
        Look::Compared { drifts, .. } if drifts.is_empty() => Exit::Success,
        Look::Compared { .. } | Look::Changing(_) => Exit::Pending,
        Look::Unknown(_) => Exit::Fault,
    }
}

/// Reads the host and compares it; again where it changed meanwhile.
fn look(place: &Place) -> Look {
    let mut why = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        match try_look(place) {
            Ok(look) => return look,
            Err(error) => why = format!("{error:#}"),
        }
    }
    Look::Unknown(why)
}

fn try_look(place: &Place) -> anyhow::Result<Look> {
    let records = place.history.records()?;
    if let Some(record) = records.iter().find(|record| is_changing(record)) {
        return Ok(Look::Changing(record.id));
    }
    let Some(current) = apply::current(&records) else { return Ok(Look::NothingApplied) };
    let text = current.text.clone().unwrap_or_else(|| NO_FILE.to_owned());
    let document = config::Document { name: "the file that was applied".into(), text };
    let config = config::load(&document).map_err(|problems| {
        let texts: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
        anyhow::anyhow!("The file that was applied cannot be read any more: {}", texts.join("; "))
    })?;
    let host = place.read(&config)?;
    let drifts = drifts(&config, &host, &apply::originals(&records));
    let after = place.history.records()?;
    anyhow::ensure!(
        after.iter().map(|record| (record.id, &record.state)).eq(records.iter().map(|r| (r.id, &r.state))),
        "changes follow one another too fast to look in between"
    );
    Ok(Look::Compared { change: current.id, drifts })
}

/// Somebody is at it.
fn is_changing(record: &Record) -> bool {
    match &record.state {
        State::Applying { holder } | State::Waiting { holder, .. } => holder.is_alive(),
        State::Committed | State::Reverted { .. } => false,
    }
}

/// What is to be told of a look, after the one before.
fn news<'a>(before: Option<&'a Look>, now: &'a Look) -> Vec<Event<'a>> {
    let (change, found) = match now {
        now if before == Some(now) => return Vec::new(),
        Look::NothingApplied => return vec![Event::NothingApplied],
        Look::Changing(change) => return vec![Event::Changing { change: *change }],
        Look::Unknown(why) => return vec![Event::Unknown { why: why.clone() }],
        Look::Compared { change, drifts } => (*change, drifts),
    };
    let known: &[Drift] = match before {
        Some(Look::Compared { change: same, drifts }) if *same == change => drifts,
        _ => &[],
    };
    let gone = known.iter().filter(|old| !found.iter().any(|new| new.is_about(old) || new.hides(old)));
    let new = found.iter().filter(|new| !known.contains(new));
    let mut events: Vec<Event<'a>> = gone.map(Event::Gone).chain(new.map(Event::Drift)).collect();
    if found.is_empty() {
        events.push(Event::InSync { change });
    }
    events
}

/// One line.
fn tell(event: &Event<'_>, json: bool) -> std::io::Result<()> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let line = if json {
        serde_json::to_string(&Told { time, event })?
    } else {
        format!("{time}  {}", in_words(event))
    };
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

fn in_words(event: &Event<'_>) -> String {
    match event {
        Event::InSync { change } => format!("The host is as change {change} made it."),
        Event::Drift(drift) => drift.to_string(),
        Event::Gone(drift) => format!("{}: {} is {} again", drift.object, drift.field, drift.expected),
        Event::Changing { change } => format!("Change {change} is being done; the host is compared then."),
        Event::NothingApplied => "Nothing was applied yet.".to_owned(),
        Event::Unknown { why } => format!("The host cannot be compared: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(object: &str, field: &str, actual: &str) -> Drift {
        let (object, field, actual) = (object.to_owned(), field.to_owned(), actual.to_owned());
        Drift { object, field, expected: "1500".to_owned(), actual }
    }

    fn compared(change: u64, drifts: &[Drift]) -> Look {
        Look::Compared { change, drifts: drifts.to_vec() }
    }

    fn told(before: Option<&Look>, now: &Look) -> Vec<String> {
        news(before, now).iter().map(in_words).collect()
    }

    #[test]
    fn each_field_is_told_when_it_drifts_and_when_it_is_back() {
        let (mtu, other) = (drift("br0", "mtu", "1400"), drift("br0", "mtu", "1300"));
        let fine = compared(3, &[]);
        assert_eq!(told(None, &fine), ["The host is as change 3 made it."]);
        let off = compared(3, std::slice::from_ref(&mtu));
        assert_eq!(told(Some(&fine), &off), ["br0: mtu 1500 -> 1400"]);
        assert!(told(Some(&off), &off.clone()).is_empty());
        let more = compared(3, &[other]);
        assert_eq!(told(Some(&off), &more), ["br0: mtu 1500 -> 1300"]);
        assert_eq!(told(Some(&off), &fine), ["br0: mtu is 1500 again", "The host is as change 3 made it."]);
    }

    #[test]
    fn nothing_is_said_to_be_back_that_is_not_there_or_cannot_be_known() {
        let mtu = compared(3, &[drift("br0", "mtu", "1400")]);
        let gone = compared(3, &[drift("br0", "link", "absent")]);
        assert_eq!(told(Some(&mtu), &gone), ["br0: link 1500 -> absent"]);
        let vf = compared(3, &[drift("VF 1 of 0000:01:00.0", "trust", "on")]);
        let fewer = compared(3, &[drift("0000:01:00.0", "num-vfs", "0")]);
        assert_eq!(told(Some(&vf), &fewer), ["0000:01:00.0: num-vfs 1500 -> 0"]);
        let refused = compared(3, &[drift("devices.lan.match", "possible", "There is no such PCI function")]);
        assert_eq!(told(Some(&vf), &refused).len(), 1);
        let unknown = Look::Unknown("no".into());
        assert_eq!(told(Some(&mtu), &unknown), ["The host cannot be compared: no"]);
        // Then all of it is told again.
        assert_eq!(told(Some(&unknown), &mtu), ["br0: mtu 1500 -> 1400"]);
    }

    #[test]
    fn another_change_begins_anew() {
        let (before, now) = (compared(3, &[drift("br0", "mtu", "1400")]), compared(4, &[]));
        assert_eq!(told(Some(&before), &now), ["The host is as change 4 made it."]);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let found = drift("br0", "mtu", "1400");
        let told = Told { time: "now".into(), event: &Event::Drift(&found) };
        assert_eq!(
            serde_json::to_string(&told).unwrap(),
            r#"{"time":"now","event":"drift","object":"br0","field":"mtu","expected":"1500","actual":"1400"}"#
        );
    }
}
