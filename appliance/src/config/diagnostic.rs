//! What is wrong with a file, where, and what to do about it.

use std::fmt::Write;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but it is not what was meant, as likely as not.
    Warning,
}

/// One problem of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named.
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

/// What two looks at a file found, each once, by line.
pub fn together(mut problems: Vec<Diagnostic>, more: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let new: Vec<_> = more.into_iter().filter(|problem| !problems.contains(problem)).collect();
    problems.extend(new);
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

impl Diagnostic {
    /// A problem that is not about a line of the file.
    pub fn of_file(file: &str, message: impl Into<String>, help: Option<String>) -> Self {
        let (file, message) = (file.to_owned(), message.into());
        Self { severity: Severity::Error, file, line: 0, column: 0, message, help, source: None }
    }

    /// For a terminal: place, severity and message, then the line with a caret, then the help.
    pub fn render(&self) -> String {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut text = match self.line {
            0 => format!("{}: {severity}: {}\n", self.file, self.message),
            _ => format!("{}:{}:{}: {severity}: {}\n", self.file, self.line, self.column, self.message),
        };
        if let Some(source) = &self.source {
            // Tabs stay tabs, so that the caret is below its character however wide they are.
            let lead: String = source.chars().take(self.column.saturating_sub(1)).collect();
            let pad: String = lead.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let _ = write!(text, "    {source}\n    {pad}^\n");
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, "    help: {help}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_is_below_its_character() {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: "box.yaml".into(),
            line: 3,
            column: 4,
            message: "Unknown key `cpu`".into(),
            help: Some("did you mean `cpus`?".into()),
            source: Some("\t  cpu: 2".into()),
        };
        let want = "box.yaml:3:4: error: Unknown key `cpu`\n    \t  cpu: 2\n    \t  ^\n    help: did you mean `cpus`?\n";
        assert_eq!(diagnostic.render(), want);
    }
}
