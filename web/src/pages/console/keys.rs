//! Keys that have no letter, as a terminal sends them (xterm's control sequences).

/// By name, in the order of the choice on the page.
pub(crate) const KEYS: [&str; 22] = [
    "Enter",
    "Escape",
    "Tab",
    "Backspace",
    "ArrowUp",
    "ArrowDown",
    "ArrowLeft",
    "ArrowRight",
    "Home",
    "End",
    "PageUp",
    "PageDown",
    "Insert",
    "Delete",
    "F1",
    "F2",
    "F8",
    "F10",
    "F12",
    "Ctrl+C",
    "Ctrl+D",
    "Ctrl+X",
];

/// What is sent for a key.
pub(super) fn bytes(key: &str, application_arrows: bool) -> Option<Vec<u8>> {
    let arrow = if application_arrows { "\x1bO" } else { "\x1b[" };
    let text = match key {
        "Enter" => "\r".to_owned(),
        "Escape" => "\x1b".to_owned(),
        "Tab" => "\t".to_owned(),
        "Backspace" => "\x7f".to_owned(),
        "ArrowUp" => format!("{arrow}A"),
        "ArrowDown" => format!("{arrow}B"),
        "ArrowRight" => format!("{arrow}C"),
        "ArrowLeft" => format!("{arrow}D"),
        "Home" => format!("{arrow}H"),
        "End" => format!("{arrow}F"),
        "PageUp" => "\x1b[5~".to_owned(),
        "PageDown" => "\x1b[6~".to_owned(),
        "Insert" => "\x1b[2~".to_owned(),
        "Delete" => "\x1b[3~".to_owned(),
        "F1" => "\x1bOP".to_owned(),
        "F2" => "\x1bOQ".to_owned(),
        "F8" => "\x1b[19~".to_owned(),
        "F10" => "\x1b[21~".to_owned(),
        "F12" => "\x1b[24~".to_owned(),
        "Ctrl+C" => "\x03".to_owned(),
        "Ctrl+D" => "\x04".to_owned(),
        "Ctrl+X" => "\x18".to_owned(),
        _ => return None,
    };
    Some(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_of_the_page_is_sent_as_something() {
        let sent: std::collections::BTreeSet<_> =
            KEYS.iter().map(|key| bytes(key, true).unwrap_or_default()).collect();
        assert_eq!(sent.len(), KEYS.len());
        assert!(!sent.contains(&Vec::new()));
        assert_eq!(bytes("rm", false), None);
    }
}
