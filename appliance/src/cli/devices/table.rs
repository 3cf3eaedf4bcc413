//! A line for each function.

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};

use super::Entry;

/// As wide as `width` columns, or as the terminal, or where there is none as it comes.
pub(super) fn text(entries: &[Entry<'_>], width: Option<u16>) -> Option<String> {
    let rows: Vec<_> = entries.iter().map(row).collect();
    (!rows.is_empty()).then(|| arranged(["ADDRESS", "GROUP", "DRIVER", "RESET", "DEVICE"], rows, width))
}

/// A table without lines. Only the last column, which has words, is wrapped.
pub(in crate::cli) fn arranged<const N: usize>(
    header: [&str; N],
    rows: Vec<[String; N]>,
    width: Option<u16>,
) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    table.set_header(header).add_rows(rows);
    for (number, column) in (1..).zip(table.column_iter_mut()) {
        column.set_padding((0, if number < N { 2 } else { 0 }));
        if number < N {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

fn row(entry: &Entry<'_>) -> [String; 5] {
    let function = entry.function;
    let reset = match function.reset_methods.as_slice() {
        [] => "-".to_owned(),
        methods => methods.join(" "),
    };
    let vf = function.physical_function.zip(function.vf_index);
    let vf = vf.map(|(pf, index)| format!("VF {index} of {pf}"));
    [function.address.to_string(), entry.group(), entry.driver().to_owned(), reset, entry.words(vf)]
}
