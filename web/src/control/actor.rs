//! Who asks, and what he may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What somebody may do in general; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Starts, stops and uses guests.
    Operator,
    /// Changes the file, the host and who may do what.
    Admin,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// To see.
    View,
    /// To start, stop and use guests.
    Operate,
    /// To change the file and the host.
    Administer,
    /// To give devices of the host to guests: it goes beside a role, as a device reaches further than a guest.
    AssignDevices,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Actor {
    /// The login's name; `uid 0` for one who came by the local socket.
    pub name: String,
    /// What he may do in general.
    pub role: Role,
    /// He may give devices of the host to guests.
    pub assign_devices: bool,
    /// Where he comes from: an address, or `local`.
    pub from: String,
    /// The token that he used, by its name; none for a login.
    pub token: Option<String>,
}

impl Actor {
    /// Whether he may do what needs this right.
    pub fn may(&self, right: Right) -> bool {
        match right {
            Right::View => true,
            Right::Operate => self.role >= Role::Operator,
            Right::Administer => self.role >= Role::Admin,
            Right::AssignDevices => self.role >= Role::Operator && self.assign_devices,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_what_those_before_it_may() {
        let actor = |role, assign_devices| Actor {
            name: "x".into(),
            role,
            assign_devices,
            from: "local".into(),
            token: None,
        };
        let may = |role, assign| {
            [Right::View, Right::Operate, Right::Administer, Right::AssignDevices]
                .map(|right| actor(role, assign).may(right))
        };
        assert_eq!(may(Role::Viewer, true), [true, false, false, false]);
        assert_eq!(may(Role::Operator, false), [true, true, false, false]);
        assert_eq!(may(Role::Operator, true), [true, true, false, true]);
        assert_eq!(may(Role::Admin, false), [true, true, true, false]);
    }
}
