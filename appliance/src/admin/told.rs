//! Our own types as the interface tells them.

use web::wire;

use crate::apply::{Record, State};
use crate::config::{Diagnostic, Document, Severity};
use crate::plan::Refusal;

pub(super) fn diagnostic(problem: Diagnostic) -> wire::Diagnostic {
    let Diagnostic { severity, file, line, column, message, help, source } = problem;
    let severity = match severity {
        Severity::Error => wire::Severity::Error,
        Severity::Warning => wire::Severity::Warning,
    };
    wire::Diagnostic { severity, file, line, column, message, help, source }
}

pub(super) fn diagnostics(problems: Vec<Diagnostic>) -> Vec<wire::Diagnostic> {
    problems.into_iter().map(diagnostic).collect()
}

/// What the host refuses of a text, each at its line.
pub(super) fn refusals(document: &Document, refusals: &[Refusal]) -> Vec<wire::Diagnostic> {
    let at =
        |refusal: &Refusal| document.at_path(&refusal.path, refusal.message.clone(), refusal.help.clone());
    let mut problems: Vec<Diagnostic> = refusals.iter().map(at).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    diagnostics(problems)
}

/// Who asked for a change.
pub(super) fn asker(record: &Record) -> String {
    record.by.clone().unwrap_or_else(|| format!("uid {}", record.user))
}

pub(super) fn change(record: &Record, holds: bool) -> wire::Change {
    let (state, until, why) = match &record.state {
        State::Applying { holder } if holder.is_alive() => (wire::ChangeState::Applying, None, None),
        State::Waiting { holder, until } if holder.is_alive() => {
            (wire::ChangeState::Waiting, Some(*until), None)
        }
        State::Applying { .. } | State::Waiting { .. } => {
            let why = "Its process is gone: `throughway recover` puts back what it did";
            (wire::ChangeState::Failed, None, Some(why.to_owned()))
        }
        State::Committed => (wire::ChangeState::Committed, None, None),
        State::Reverted { why } => (wire::ChangeState::Reverted, None, Some(why.clone())),
    };
    wire::Change {
        id: record.id,
        by: asker(record),
        started: record.started,
        title: record.title.clone(),
        state,
        until,
        why,
        steps: record.steps.clone(),
        holds,
    }
}

/// All changes, oldest first.
pub(super) fn changes(records: &[Record]) -> Vec<wire::Change> {
    let current = crate::apply::current(records).map(|current| current.id);
    records.iter().map(|record| change(record, current == Some(record.id))).collect()
}
