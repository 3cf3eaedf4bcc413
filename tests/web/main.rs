//! The admin interface of a real daemon, as whoever comes over the network meets it.
//!
//! It needs root, as the daemon gives rights up for it; without, each test says so and passes. With `REQUIRE=web` (or `all`) it
//! fails.

mod access;
mod attack;
mod client;
mod served;
