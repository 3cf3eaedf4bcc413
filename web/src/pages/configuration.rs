//! The file: its text with problems at their lines, what it would change, and how it becomes what holds.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use similar::{ChangeTag, TextDiff};

use super::page::{Failure, render};
use super::{Page, Pages, Posted, Visit};
use crate::control::{Actor, Problem};
use crate::wire::{Config, Diagnostic, Edit, Planned, Severity};

/// Lines of what stays around each difference.
const AROUND: usize = 3;
/// Of a longer difference the rest is not shown.
const MOST_LINES: usize = 2000;

/// One line of a difference.
struct Line {
    class: &'static str,
    text: String,
}

#[derive(Template)]
#[template(path = "configuration.html")]
struct ConfigurationTemplate {
    page: Page,
    config: Config,
    /// As it is in the form.
    text: String,
    diagnostics: Vec<Diagnostic>,
    planned: Option<Planned>,
    refused: Option<Problem>,
    diff: Vec<Line>,
    /// He has asked what it would do.
    asked: bool,
}

impl ConfigurationTemplate {
    /// Numbers of all lines; those with errors are bold.
    fn numbers(&self) -> String {
        let lines = self.text.split('\n').count();
        let wrong = |line: usize| {
            self.diagnostics.iter().any(|one| one.line == line && one.severity == Severity::Error)
        };
        let mut numbers = String::with_capacity(lines * 4);
        for line in 1..=lines {
            let text = line.to_string();
            numbers.push_str(&if wrong(line) { format!("<b>{text}</b>\n") } else { format!("{text}\n") });
        }
        numbers
    }

    fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|one| one.severity == Severity::Error)
    }
}

/// The text with LF alone, as the file has it: forms send CR LF.
fn unix(text: &str) -> String {
    text.replace("\r\n", "\n")
}

fn difference(old: &str, new: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let diff = TextDiff::from_lines(old, new);
    for (at, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if at > 0 {
            lines.push(Line { class: "gap", text: "⋯".into() });
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (class, sign) = match change.tag() {
                ChangeTag::Delete => ("del", '-'),
                ChangeTag::Insert => ("add", '+'),
                ChangeTag::Equal => ("same", ' '),
            };
            let text = change.value().trim_end_matches('\n');
            lines.push(Line { class, text: format!("{sign}{text}") });
            if lines.len() >= MOST_LINES {
                return lines;
            }
        }
    }
    lines
}

impl Pages {
    /// The page for a text that nobody has saved yet: what is wrong with it, what differs, what it would do.
    pub(super) async fn review(
        &self,
        visit: Visit,
        text: String,
        seen: Option<String>,
        refused: Option<Problem>,
    ) -> Result<Response, Failure> {
        let by = &visit.actor;
        let mut config = match self.control.config(by).await {
            Ok(config) => config,
            Err(problem) => return Err(visit.failed(problem)),
        };
        let (planned, diagnostics, refused) = match self.judge(by, &text).await {
            Ok((planned, diagnostics)) => (planned, diagnostics, refused),
            Err(problem) => (None, problem.diagnostics.clone(), refused.or(Some(problem))),
        };
        let diff = difference(&config.text, &text);
        // What he has seen is what he may change; where it was refused for that, he sees now what is there instead.
        if let Some(tag) = seen.filter(|_| refused.as_ref().is_none_or(|problem| problem.status != 412)) {
            config.tag = tag;
        }
        let status = refused.as_ref().and_then(|problem| StatusCode::from_u16(problem.status).ok());
        let mut page = visit.page;
        page.path = "/configuration".into();
        let asked = true;
        let template =
            ConfigurationTemplate { page, config, text, diagnostics, planned, refused, diff, asked };
        Ok(render(status.unwrap_or(StatusCode::OK), &template))
    }

    async fn judge(&self, by: &Actor, text: &str) -> Result<(Option<Planned>, Vec<Diagnostic>), Problem> {
        let checked = self.control.check(by, text.to_owned()).await?;
        if checked.diagnostics.iter().any(|one| one.severity == Severity::Error) {
            return Ok((None, checked.diagnostics));
        }
        let planned = self.control.plan(by, text.to_owned()).await?;
        Ok((Some(planned), checked.diagnostics))
    }

    /// The page for the file on disk with a small change.
    pub(super) async fn review_edit(&self, visit: Visit, edit: Edit) -> Result<Response, Failure> {
        let config = match self.control.config(&visit.actor).await {
            Ok(config) => config,
            Err(problem) => return Err(visit.failed(problem)),
        };
        match self.control.edit(&visit.actor, config.text, edit).await {
            Ok(text) => self.review(visit, text, Some(config.tag), None).await,
            Err(problem) => Err(visit.failed(problem)),
        }
    }
}

/// The file as it is.
pub(super) async fn show(State(pages): State<Pages>, visit: Visit) -> Result<Response, Failure> {
    let config = match pages.control.config(&visit.actor).await {
        Ok(config) => config,
        Err(problem) => return Err(visit.failed(problem)),
    };
    let checked = pages.control.check(&visit.actor, config.text.clone()).await;
    let template = ConfigurationTemplate {
        page: visit.page,
        text: config.text.clone(),
        config,
        diagnostics: checked.map(|checked| checked.diagnostics).unwrap_or_default(),
        planned: None,
        refused: None,
        diff: Vec::new(),
        asked: false,
    };
    Ok(render(StatusCode::OK, &template))
}

/// Looks at a text, saves it, or saves and applies it.
pub(super) async fn post(State(pages): State<Pages>, posted: Posted) -> Result<Response, Failure> {
    let (text, tag) = (unix(posted.get("text")), posted.get("tag").to_owned());
    let by = &posted.visit.actor;
    let done = match posted.get("do") {
        "save" => {
            pages.control.save(by, text.clone(), tag.clone()).await.map(|_| "/configuration?done=saved")
        }
        "apply" => pages.save_and_apply(by, &text, &tag).await.map(|_| "/changes?done=applying"),
        _ => return pages.review(posted.visit, text, Some(tag), None).await,
    };
    match done {
        Ok(next) => Ok(Redirect::to(next).into_response()),
        Err(problem) => pages.review(posted.visit, text, Some(tag), Some(problem)).await,
    }
}

impl Pages {
    async fn save_and_apply(&self, by: &Actor, text: &str, tag: &str) -> Result<u64, Problem> {
        if self.control.overview(by).await?.change.is_some() {
            let why = "Another change is being made, or waits to be confirmed. Nothing was saved; do it again when that is over";
            return Err(Problem::conflict(why));
        }
        let config = self.control.config(by).await?;
        let tag = if config.tag == tag && config.text == text {
            config.tag
        } else {
            self.control.save(by, text.to_owned(), tag.to_owned()).await?.tag
        };
        self.control.apply(by, tag).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_what_changed_and_little_else() {
        let old: String = (0..20).map(|line| format!("{line}\n")).collect();
        let new = old.replace("3\n4\n", "3\nx\n");
        let text: Vec<String> =
            difference(&old, &new).into_iter().map(|line| format!("{}{}", line.class, line.text)).collect();
        assert_eq!(text.len(), 8, "{text:?}");
        assert!(text.contains(&"del-4".to_owned()) && text.contains(&"add+x".to_owned()), "{text:?}");
        assert!(difference(&old, &old).is_empty());
        assert!(difference("", &"a\n".repeat(5000)).len() <= MOST_LINES);
    }
}
