//! What the pages say, in each language: one table, and what is not in both languages does not compile.
//!
//! What the appliance itself says of a host (causes, problems of a file, logs) is English everywhere.

mod table;

use std::borrow::Borrow;

pub(crate) use table::{EN, Words, ZH};

use crate::control::Role;
use crate::wire::GuestState;

/// A language of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Chinese,
}

impl Language {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::English, Self::Chinese];

    /// As HTML and HTTP name it.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-Hans",
        }
    }

    /// As those who speak it name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::English => "English",
            Self::Chinese => "简体中文",
        }
    }

    /// What the pages say in it.
    pub(crate) fn words(self) -> &'static Words {
        match self {
            Self::English => &EN,
            Self::Chinese => &ZH,
        }
    }

    /// One that was chosen, by its tag.
    pub(crate) fn chosen(tag: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.tag() == tag)
    }

    /// The one that a browser likes best of those there are (RFC 9110, 12.5.4); English where it likes none.
    pub(crate) fn accepted(header: &str) -> Self {
        let mut best = (0.0, Self::English);
        for part in header.split(',').take(32) {
            let mut pieces = part.split(';');
            let range = pieces.next().unwrap_or_default().trim().to_ascii_lowercase();
            let weight = pieces
                .find_map(|piece| piece.trim().strip_prefix("q="))
                .map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
            let language = match range.split('-').next() {
                Some("zh") => Self::Chinese,
                Some("en") => Self::English,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }
}

/// The text with each `{}` replaced by the next of the values.
pub(crate) fn fill<S: AsRef<str>>(text: &str, values: &[S]) -> String {
    let mut pieces = text.split("{}");
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    let mut values = values.iter();
    for piece in pieces {
        filled.push_str(values.next().map_or("", AsRef::as_ref));
        filled.push_str(piece);
    }
    filled
}

impl Words {
    /// A role's name.
    pub(crate) fn role(&self, role: impl Borrow<Role>) -> &'static str {
        match role.borrow() {
            Role::Viewer => self.viewer,
            Role::Operator => self.operator,
            Role::Admin => self.admin,
        }
    }

    /// A guest's state.
    pub(crate) fn guest_state(&self, state: impl Borrow<GuestState>) -> &'static str {
        match state.borrow() {
            GuestState::Off => self.off,
            GuestState::Waiting => self.waiting,
            GuestState::Starting => self.starting,
            GuestState::Running => self.running,
            GuestState::Paused => self.paused,
            GuestState::Stopping => self.stopping,
            GuestState::BackingOff => self.backing_off,
        }
    }
}

#[cfg(test)]
mod tests;
