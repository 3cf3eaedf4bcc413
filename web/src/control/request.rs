//! What can be asked of the appliance.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Actor, Control, Problem, Right};
use crate::wire::{
    AuditEntry, Change, Checked, Config, Defined, Device, Doctor, Drift, Edit, Guest, GuestStats, Image, Log,
    Network, Overview, Planned,
};

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Start it, in the background.
    Start,
    /// Press its power button, and pull its plug where that takes too long.
    Stop,
    /// Pull its plug.
    Kill,
    /// Hold its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Press its reset button.
    Reset,
    /// Press its power button, and wait for nothing.
    PowerButton,
}

/// Makes a request, its answer, and a method of `dyn Control` for each of them.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident as $method:ident ($($field:ident: $type:ty),*) -> $answer:ty, $right:ident;)*) => {
        /// What is asked.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[allow(missing_docs, reason = "each field says what it is by its name, and its variant has a sentence")]
        pub enum Request {
            $($(#[$doc])* $name { $($field: $type),* },)*
        }

        /// The answer to the request of the same name.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[allow(clippy::large_enum_variant, reason = "one at a time, and not for long")]
        pub enum Answer {
            $($(#[$doc])* $name($answer),)*
        }

        impl Request {
            /// What whoever asks this must be allowed.
            pub fn right(&self) -> Right {
                match self {
                    $(Self::$name { .. } => Right::$right,)*
                }
            }

            /// Its name, for logs.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($method),)*
                }
            }
        }

        impl dyn Control {
            $($(#[$doc])*
            ///
            /// # Errors
            /// As [`Control::ask`].
            pub async fn $method(&self, by: &Actor $(, $field: $type)*) -> Result<$answer, Problem> {
                match self.ask(by, Request::$name { $($field),* }).await? {
                    Answer::$name(answer) => Ok(answer),
                    other => {
                        tracing::error!("{} was answered with {other:?}", stringify!($method));
                        Err(Problem::fault("The daemon gave an answer to something else; see its log"))
                    }
                }
            })*
        }
    };
}

requests! {
    /// The box in a few words: guests, devices, drift, what waits to be confirmed.
    Overview as overview() -> Overview, View;
    /// All PCI functions of the host, each with its verdict.
    Devices as devices() -> Vec<Device>, View;
    /// Links of the host and guests on them.
    Networks as networks() -> Vec<Network>, View;
    /// All guests: of the file that holds, and others that run.
    Guests as guests() -> Vec<Guest>, View;
    /// What a guest that runs has counted.
    GuestStats as guest_stats(guest: String) -> GuestStats, View;
    /// Does something to a guest.
    Act as act(guest: String, verb: Verb) -> (), Operate;
    /// The file as it is on disk, with the tag of this version.
    Config as config() -> Config, View;
    /// What is wrong with a text.
    Check as check(text: String) -> Checked, View;
    /// A text with a small change: all else in it stays as it is. Nothing is saved.
    Edit as edit(text: String, edit: Edit) -> String, View;
    /// What a text says of a guest, and what there is for one.
    Defined as defined(text: String, guest: String) -> Defined, View;
    /// What would have to be done so that the host is as a text says.
    Plan as plan(text: String) -> Planned, View;
    /// Writes the file, where it is still the one with the tag; answers with what it is now. Nothing is applied.
    Save as save(text: String, tag: String) -> Config, Administer;
    /// Begins to make the host as the file with the tag says; the number of the change. Events tell how it goes on.
    Apply as apply(tag: String) -> u64, Administer;
    /// Says that he still comes in, after a change.
    Confirm as confirm(change: u64) -> (), Administer;
    /// Puts the last change back; the number of the change that does.
    Rollback as rollback() -> u64, Administer;
    /// Changes of the host, newest first.
    Changes as changes() -> Vec<Change>, View;
    /// Where the host is not as the file that holds says.
    Drift as drift() -> Vec<Drift>, View;
    /// What the box itself is fit for.
    Doctor as doctor() -> Doctor, View;
    /// The last lines of a log: of a guest's process, of its console, or the daemon's own where no guest is named.
    Log as log(guest: Option<String>, console: bool, lines: u32) -> Log, View;
    /// Who changed what, newest first, older than `before` where it is given.
    Audit as audit(before: Option<u64>, limit: u32) -> Vec<AuditEntry>, Administer;
    /// Disk images and installers in the folder of images.
    Images as images() -> Vec<Image>, View;
    /// An image has come whole: it is there from now on.
    FinishUpload as finish_upload(upload: u64) -> Image, Administer;
    /// An image will not come whole: nothing of it is kept.
    GiveUpUpload as give_up_upload(upload: u64, why: String) -> (), Administer;
    /// Removes one that no guest of the file has.
    RemoveImage as remove_image(name: String) -> (), Administer;
    /// Notes in the audit log what was done outside of the daemon: logins, users, tokens.
    Note as note(what: String, detail: String) -> (), View;
}
