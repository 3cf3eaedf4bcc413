//! A screen as HTML: a row a line, and what differs from plain text in spans with classes.

use askama::filters::{Html, escape};
use vt100::{Cell, Color, Screen};

/// All rows.
pub(super) fn rows(screen: &Screen) -> String {
    let (height, width) = screen.size();
    let (height, width) = (height.get(), width.get());
    let cursor = (!screen.hide_cursor()).then(|| screen.cursor_position());
    let mut html = String::with_capacity(usize::from(height) * usize::from(width));
    for row in 0..height {
        html.push_str("<div>");
        html.push_str(&line(screen, row, width, cursor));
        html.push_str("</div>");
    }
    html
}

fn line(screen: &Screen, row: u16, width: u16, cursor: Option<(u16, u16)>) -> String {
    let mut html = String::new();
    let mut text = String::new();
    let mut class = String::new();
    // Plain blanks at the end are nothing to look at.
    let is_empty = |col: &u16| {
        let blank = |cell: &Cell| cell.contents().trim().is_empty() && classes(cell, false).is_empty();
        cursor != Some((row, *col)) && screen.cell(row, *col).is_none_or(blank)
    };
    let end = (0..width).rev().find(|col| !is_empty(col)).map_or(0, |last| last + 1);
    for col in 0..end {
        let Some(cell) = screen.cell(row, col) else { continue };
        if cell.is_wide_continuation() {
            continue;
        }
        let its = classes(cell, cursor == Some((row, col)));
        if its != class {
            flush(&mut html, &mut text, &class);
            class = its;
        }
        let contents = cell.contents();
        text.push_str(if contents.is_empty() { " " } else { contents });
    }
    flush(&mut html, &mut text, &class);
    html
}

fn flush(html: &mut String, text: &mut String, class: &str) {
    if text.is_empty() {
        return;
    }
    let escaped = escape(text.as_str(), Html).map(|text| text.to_string()).unwrap_or_default();
    if class.is_empty() {
        html.push_str(&escaped);
    } else {
        html.push_str(&format!("<span class=\"{class}\">{escaped}</span>"));
    }
    text.clear();
}

/// `f1 b4 bold`.
fn classes(cell: &Cell, cursor: bool) -> String {
    let (mut front, mut back) = (sixteen(cell.fgcolor()), sixteen(cell.bgcolor()));
    if cell.inverse() {
        (front, back) = (Some(back.unwrap_or(0)), Some(front.unwrap_or(7)));
    }
    let colours = [front.map(|front| format!("f{front}")), back.map(|back| format!("b{back}"))];
    let words = [
        (cell.bold(), "bold"),
        (cell.dim(), "dim"),
        (cell.italic(), "italic"),
        (cell.underline(), "under"),
        (cursor, "cursor"),
    ];
    let words = words.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word.to_owned());
    colours.into_iter().flatten().chain(words).collect::<Vec<_>>().join(" ")
}

/// The nearest of the 16 colours that a terminal has names for; none is its own.
fn sixteen(colour: Color) -> Option<u8> {
    match colour {
        Color::Default => None,
        Color::Idx(index @ 0..=15) => Some(index),
        Color::Idx(index @ 16..=231) => {
            let cube = index - 16;
            Some(nearest(cube / 36 * 51, cube / 6 % 6 * 51, cube % 6 * 51))
        }
        Color::Idx(index) => {
            let grey = (index - 232).saturating_mul(10).saturating_add(8);
            Some(nearest(grey, grey, grey))
        }
        Color::Rgb(red, green, blue) => Some(nearest(red, green, blue)),
    }
}

fn nearest(red: u8, green: u8, blue: u8) -> u8 {
    let top = red.max(green).max(blue);
    let low = red.min(green).min(blue);
    if top - low < 32 {
        return match top {
            0..=50 => 0,
            51..=140 => 8,
            141..=220 => 7,
            _ => 15,
        };
    }
    let half = top / 2;
    let bit = |value: u8, bit: u8| if value > half { bit } else { 0 };
    (bit(red, 1) | bit(green, 2) | bit(blue, 4)) + if top > 190 { 8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(bytes: &[u8]) -> String {
        let mut parser =
            vt100::Parser::new(super::super::screens::size(4), super::super::screens::size(20), 0);
        parser.process(bytes);
        rows(parser.screen())
    }

    #[test]
    fn text_is_text_and_colours_are_classes() {
        let html = drawn("<b>&\r\n\x1b[1;31mred\x1b[0m \x1b[7mturned\x1b[0m 你好".as_bytes());
        assert!(html.starts_with("<div>&#60;b&#62;&#38;</div>"), "{html}");
        assert!(html.contains("<span class=\"f1 bold\">red</span>"), "{html}");
        assert!(
            html.contains("<span class=\"f0 b7\">turned</span> 你好<span class=\"cursor\"> </span>"),
            "{html}"
        );
        assert_eq!(html.matches("<div>").count(), 4);
    }

    #[test]
    fn colours_come_near() {
        for (colour, named) in [
            (Color::Rgb(255, 0, 0), 9),
            (Color::Rgb(0, 120, 0), 2),
            (Color::Idx(231), 15),
            (Color::Idx(232), 0),
            (Color::Idx(255), 15),
            (Color::Idx(16), 0),
        ] {
            assert_eq!(sixteen(colour), Some(named), "{colour:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_guest_says_gets_out_of_its_row(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let html = drawn(&bytes);
            prop_assert_eq!(html.matches("<div>").count(), 4);
            let rest = html.replace("<div>", "").replace("</div>", "").replace("</span>", "");
            for piece in rest.split('<').skip(1) {
                prop_assert!(piece.starts_with("span class=\""), "{}", piece);
            }
        }
    }
}
