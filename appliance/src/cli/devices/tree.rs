//! The functions by where they are plugged in.

use std::collections::BTreeMap;

use vfio::PciAddress;

use super::Entry;
use super::table::arranged;

/// What is below what.
struct Tree<'a> {
    below: BTreeMap<Option<PciAddress>, Vec<&'a Entry<'a>>>,
    /// Bridges with nothing below them, too.
    all: bool,
    rows: Vec<[String; 4]>,
}

/// As wide as `width` columns, or as the terminal, or where there is none as it comes.
pub(super) fn text(entries: &[Entry<'_>], all: bool, width: Option<u16>) -> Option<String> {
    let mut tree = Tree { below: BTreeMap::new(), all, rows: Vec::new() };
    for entry in entries {
        tree.below.entry(parent(entries, entry)).or_default().push(entry);
    }
    tree.branch(None, "");
    let rows = tree.rows;
    (!rows.is_empty()).then(|| arranged(["FUNCTION", "GROUP", "DRIVER", "DEVICE"], rows, width))
}

/// A VF is below its PF, anything else below its bridge. What is above is among the entries: else it would hang on nothing.
fn parent(entries: &[Entry<'_>], entry: &Entry<'_>) -> Option<PciAddress> {
    let parent = entry.function.physical_function.or(entry.function.parent)?;
    entries.iter().any(|entry| entry.function.address == parent).then_some(parent)
}

impl<'a> Tree<'a> {
    /// Adds what is below `at`. The walk ends: what is below is deeper in the bus, and a VF has nothing below it.
    fn branch(&mut self, at: Option<PciAddress>, lead: &str) {
        let below = self.below.remove(&at).unwrap_or_default();
        let shown: Vec<&Entry<'a>> = below.into_iter().filter(|entry| self.is_shown(entry)).collect();
        let last = shown.len().saturating_sub(1);
        for (number, entry) in shown.into_iter().enumerate() {
            let (here, on) = match (at.is_none(), number == last) {
                (true, _) => ("", ""),
                (false, false) => ("├─ ", "│  "),
                (false, true) => ("└─ ", "   "),
            };
            self.row(entry, &format!("{lead}{here}"));
            self.branch(Some(entry.function.address), &format!("{lead}{on}"));
        }
    }

    /// A bridge is worth a line for what is below it.
    fn is_shown(&self, entry: &Entry<'_>) -> bool {
        let below = self.below.get(&Some(entry.function.address));
        let some = below.is_some_and(|below| below.iter().any(|entry| self.is_shown(entry)));
        self.all || some || !entry.function.is_bridge()
    }

    fn row(&mut self, entry: &Entry<'_>, lead: &str) {
        let vf = entry.function.vf_index.map(|index| format!("VF {index}  ")).unwrap_or_default();
        let function = format!("{lead}{vf}{}", entry.function.address);
        self.rows.push([function, entry.group(), entry.driver().to_owned(), entry.words(None)]);
    }
}
