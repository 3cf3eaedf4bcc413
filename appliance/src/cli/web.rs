//! `throughway web`: started by the daemon alone.

use super::exit::Exit;
use super::failure::ended;
use crate::admin;

pub(super) fn main() -> Exit {
    super::early::one_heap();
    ended(admin::web().map(|()| Exit::Success).map_err(Into::into))
}
