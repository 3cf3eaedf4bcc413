//! The file, what is wrong with it, what it would change, and what was changed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but it is not what was meant, as likely as not.
    Warning,
}

/// One problem of a file, as `throughway check --json` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: String,
    /// Line, from 1; 0 where it is not about a line.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The line itself.
    pub source: Option<String>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// Where it is.
    pub path: String,
    /// Its text; empty where there is none yet.
    pub text: String,
    /// The tag of this text: whoever changes it says which one he has seen (an HTTP ETag without its quotes).
    pub tag: String,
    /// Its text is that of the change that holds.
    pub applied: bool,
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// By line.
    pub diagnostics: Vec<Diagnostic>,
}

/// What would have to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Planned {
    /// In order; empty where the host is as the text says.
    pub steps: Vec<Step>,
    /// Warnings about the text.
    pub diagnostics: Vec<Diagnostic>,
    /// It touches the way that the administrator comes by: it is put back unless it is confirmed in time.
    pub wants_confirmation: bool,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// What is changed, from what, to what.
    pub text: String,
    /// What else is touched by it, such as VFs that are reset: empty where nothing is.
    pub blast_radius: Vec<String>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeState {
    /// It is being done.
    Applying,
    /// It is done, and is put back unless somebody confirms it.
    Waiting,
    /// It holds.
    Committed,
    /// It was put back.
    Reverted,
    /// Not all of it could be put back.
    Failed,
}

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// Counted from 1.
    pub id: u64,
    /// Who asked for it.
    pub by: String,
    /// When.
    pub started: u64,
    /// What was asked for.
    pub title: String,
    /// What became of it.
    pub state: ChangeState,
    /// Until when it waits to be confirmed.
    pub until: Option<u64>,
    /// Why it was put back, where it was.
    pub why: Option<String>,
    /// What was done, as a person reads it.
    pub steps: Vec<String>,
    /// It is the one that holds.
    pub holds: bool,
}

/// One field that is not as the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Drift {
    /// Whose.
    pub object: String,
    /// Which.
    pub field: String,
    /// What the file says.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct AuditEntry {
    /// Counted from 1.
    pub id: u64,
    /// When.
    pub at: u64,
    /// Who: a login's name.
    pub by: String,
    /// From where: an address, or `local`.
    pub from: String,
    /// The token that was used, by its name.
    pub token: Option<String>,
    /// What, in a few words.
    pub what: String,
    /// More: a diff of the file, a guest's name.
    pub detail: String,
    /// It was done; otherwise why not.
    pub refused: Option<String>,
}
