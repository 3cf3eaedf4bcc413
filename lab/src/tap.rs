//! The results a scenario prints, in the manner of TAP (Test Anything Protocol):
//! `ok N - text` and `not ok N - text # why`.

/// One check that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Whether it held.
    pub passed: bool,
    /// What was checked.
    pub text: String,
    /// Why it failed, or what was measured.
    pub why: Option<String>,
}

/// Reads one line; `None` when it is no result.
#[must_use]
pub fn parse(line: &str) -> Option<Check> {
    let (passed, rest) = if let Some(rest) = line.strip_prefix("not ok") {
        (false, rest)
    } else {
        (true, line.strip_prefix("ok")?)
    };
    let rest = rest.strip_prefix(' ')?;
    let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).trim_start();
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (text, why) = match rest.split_once(" # ") {
        Some((text, why)) => (text.trim(), Some(why.trim().to_owned())),
        None => (rest.trim(), None),
    };
    Some(Check { passed, text: text.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let check = parse("not ok 3 - guest answers # no reply in 5 s").unwrap();
        assert!(!check.passed);
        assert_eq!((check.text.as_str(), check.why.as_deref()), ("guest answers", Some("no reply in 5 s")));
        let check = parse("ok 12 - it is there").unwrap();
        assert!(check.passed && check.why.is_none());
        assert_eq!(check.text, "it is there");
    }

    #[test]
    fn other_lines_are_not_results() {
        for line in ["", "okay", "# ok 1 - x", "1..4", "not okay"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
