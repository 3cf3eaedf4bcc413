//! From single measurements to what is said of them: absolute values move with a machine's load, ratios of neighbours do
//! not, so both are given.

/// What was measured of one contestant, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest; none when empty.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// The largest; none when empty.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    /// The middle one, or the mean of the two in the middle; none when empty.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(f64::midpoint(lower, upper))
    }

    /// This over another contestant's, round by round.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).filter(|(_, other)| **other != 0.0).map(|(a, b)| a / b).collect())
    }
}

/// A value as people read it, or a dash.
#[must_use]
pub fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Rows of equal length as a Markdown table; the first is the heading.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String]| {
        let cells =
            widths.iter().enumerate().map(|(column, width)| format!(" {:<width$} |", cell(row, column)));
        format!("|{}\n", cells.collect::<String>())
    };
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&line(row));
        if index == 0 {
            text.push_str(&format!(
                "|{}\n",
                widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect::<String>()
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series(values.to_vec())
    }

    #[test]
    fn the_middle_is_found_for_even_and_odd_numbers() {
        assert_eq!(series(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(series(&[4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!((series(&[]).median(), series(&[]).min()), (None, None));
    }

    #[test]
    fn ratios_pair_the_rounds() {
        // The machine was four times slower in the second round: the ratio is the same.
        let ratio = series(&[1.0, 4.0]).over(&series(&[2.0, 8.0]));
        assert_eq!((ratio.min(), ratio.max(), ratio.median()), (Some(0.5), Some(0.5), Some(0.5)));
        assert!(series(&[1.0]).over(&series(&[0.0])).is_empty());
    }

    #[test]
    fn tables_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["", "ours"]), row(["time", "1"])]);
        assert_eq!(text, "|      | ours |\n|------|------|\n| time | 1    |\n");
    }
}
