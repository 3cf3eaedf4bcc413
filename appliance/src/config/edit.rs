//! Small changes of a file in place: all other bytes, comments among them, stay as they are.
//!
//! YAML has many ways to write the same. What is not understood here is not changed: who calls reads the outcome again and
//! compares it with what was meant.

mod change;
mod guest;

use super::Document;
use super::position::{End, Step, locate};

pub use guest::Named;

impl Document {
    /// The text with the scalar at a path of keys, which says `from`, saying `to`. None where it is written in a way that is not
    /// understood (an alias, a block of several lines).
    pub fn with_scalar(&self, path: &[&str], from: &str, to: &str) -> Option<String> {
        let start = self.offset(path, End::Value)?;
        let rest = self.text.get(start..)?;
        let (length, new) = match rest.chars().next()? {
            '"' => (double_quoted(rest)?, format!("\"{}\"", escaped(to))),
            '\'' => (single_quoted(rest)?, format!("'{}'", to.replace('\'', "''"))),
            _ => {
                let after = rest.strip_prefix(from)?.chars().next();
                if !after.is_none_or(|after| after.is_whitespace() || matches!(after, ',' | '}' | ']')) {
                    return None;
                }
                // What looks like text to a person may be a number to YAML.
                (from.len(), format!("\"{}\"", escaped(to)))
            }
        };
        Some([self.text.get(..start)?, &new, rest.get(length..)?].concat())
    }

    /// The text without the entry of a map that a path of keys leads to.
    pub fn without(&self, path: &[&str]) -> Option<String> {
        let start = self.offset(path, End::Key)?;
        let (before, rest) = (self.text.get(..start)?, self.text.get(start..)?);
        let line = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        let lead = before.get(line..)?;
        if lead.chars().all(|c| c == ' ') {
            let end = start.checked_add(block(rest, lead.len()))?;
            return Some([self.text.get(..line)?, self.text.get(end..)?].concat());
        }
        let length = flow(rest)?;
        let (taken, after) = (rest.get(..length)?, rest.get(length..)?);
        if let Some(next) = after.strip_prefix(',') {
            return Some([before, next.trim_start_matches(' ')].concat());
        }
        // The last one: the comma before it goes, and a blank that stood before the brace stays.
        let blanks = taken.len().saturating_sub(taken.trim_end().len());
        let kept = before.trim_end().strip_suffix(',').unwrap_or(before);
        Some([kept, taken.get(taken.len().saturating_sub(blanks)..)?, after].concat())
    }

    fn offset(&self, path: &[&str], end: End) -> Option<usize> {
        let steps: Vec<Step> = path.iter().map(|key| Step::key(*key)).collect();
        let (line, column) = locate(&self.text, &steps, end)?;
        let lines = self.text.split_inclusive('\n');
        let start: usize = lines.take(line.checked_sub(1)?).map(str::len).sum();
        let lead: usize =
            self.text.get(start..)?.chars().take(column.checked_sub(1)?).map(char::len_utf8).sum();
        start.checked_add(lead)
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Bytes of a scalar in double quotes, both among them.
fn double_quoted(text: &str) -> Option<usize> {
    let mut escape = false;
    text.char_indices().skip(1).find_map(|(at, c)| {
        let end = c == '"' && !escape;
        escape = c == '\\' && !escape;
        end.then_some(at + 1)
    })
}

/// Bytes of a scalar in single quotes, both among them; a quote in it is there twice.
fn single_quoted(text: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        let quote = at + text.get(at..)?.find('\'')?;
        if !text.get(quote + 1..)?.starts_with('\'') {
            return Some(quote + 1);
        }
        at = quote + 2;
    }
}

/// Bytes of an entry that begins a line, `indent` in, to the end of its last line. What follows it, blank lines and comments among
/// it, is the next one's.
fn block(text: &str, indent: usize) -> usize {
    let (mut end, mut at) = (0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        at += line.len();
        let own = line.trim_start_matches(' ');
        let depth = line.len() - own.len();
        let content = !own.trim().is_empty() && !own.starts_with('#');
        if number > 0 && content && depth <= indent {
            break;
        }
        if number == 0 || content {
            end = at;
        }
    }
    end
}

/// Bytes of an entry of a map in braces, to the comma or brace that ends it.
fn flow(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(c) = text.get(at..)?.chars().next() {
        let rest = text.get(at..)?;
        let blank_before = text.get(..at)?.ends_with([' ', '\n']);
        at += match c {
            '"' => double_quoted(rest)?,
            '\'' if !text.get(..at)?.ends_with(char::is_alphanumeric) => single_quoted(rest)?,
            '#' if blank_before => rest.find('\n')?,
            ',' | '}' | ']' if depth == 0 => return Some(at),
            '{' | '[' => {
                depth += 1;
                1
            }
            '}' | ']' => {
                depth -= 1;
                1
            }
            other => other.len_utf8(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(text: &str) -> Document {
        Document { name: "box.yaml".into(), text: text.into() }
    }

    #[test]
    fn a_scalar_is_replaced_in_its_quotes_and_nothing_else() {
        for (before, after) in [
            ("a:\n  # öß\n  b: {c: \"x:y\", d: 1}  # c\n", "a:\n  # öß\n  b: {c: \"n'\\\"\", d: 1}  # c\n"),
            ("a: {b: {ä: 'it''s', c: 'x:y'}}\r\nd: 1\r\n", "a: {b: {ä: 'it''s', c: 'n''\"'}}\r\nd: 1\r\n"),
            ("a:\n  b:\n    c: x:y # why\n", "a:\n  b:\n    c: \"n'\\\"\" # why\n"),
            ("a: {b: {c: x:y}}", "a: {b: {c: \"n'\\\"\"}}"),
        ] {
            let found = document(before).with_scalar(&["a", "b", "c"], "x:y", "n'\"");
            assert_eq!(found.as_deref(), Some(after), "{before}");
        }
        for other in
            ["a: {b: {c: &it x:y}}", "z: &it x:y\na: {b: {c: *it}}", "a:\n  b:\n    c: >-\n      x:y\n"]
        {
            assert_eq!(document(other).with_scalar(&["a", "b", "c"], "x:y", "n"), None, "{other}");
        }
    }

    #[test]
    fn an_entry_goes_with_its_lines_and_leaves_the_comments_of_others() {
        for (before, after) in [
            (
                "d:\n  # first\n  x:\n    m: 1\n\n    n: [2,\n      3]\n\n  # second\n  y: 2\n",
                "d:\n  # first\n\n  # second\n  y: 2\n",
            ),
            ("d:\n  y: 1\n  x: {m: 1}\ne: 3\n", "d:\n  y: 1\ne: 3\n"),
            ("d: {x: {m: \"}, {\"}, y: 1}\n", "d: {y: 1}\n"),
            ("d: {y: 1, x: {m: [1, {k: 2}]}}\n", "d: {y: 1}\n"),
            ("d: { y: 1, x: it's }\n", "d: { y: 1 }\n"),
            ("d: {x: 1}\n", "d: {}\n"),
            ("d:\n  x: 1", "d:\n"),
        ] {
            assert_eq!(document(before).without(&["d", "x"]).as_deref(), Some(after), "{before}");
        }
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in "(a: |b: |[{}\\[\\],'\"#\\\\& \nxä]){0,30}") {
            let document = document(&text);
            document.with_scalar(&["a", "b"], "x", "y");
            document.without(&["a", "b"]);
            document.without(&["a"]);
        }

        #[test]
        fn what_is_replaced_reads_as_it_was_meant(to in "[ -~]{0,20}", quote in 0_usize..3) {
            let value = ["\"x\"", "'x'", "x"][quote];
            let text = format!("a: {{b: {value}, c: 1}}\n");
            let found = document(&text).with_scalar(&["a", "b"], "x", &to).unwrap();
            let read: serde_yaml::Value = serde_yaml::from_str(&found).unwrap();
            prop_assert_eq!(read["a"]["b"].as_str(), Some(to.as_str()));
        }
    }
}
