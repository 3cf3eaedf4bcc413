//! The pages as a person uses them: a real browser (Debian's Chromium), the real daemon, a small guest on /dev/kvm.
//!
//! Without chromium, chromedriver, /dev/kvm or the right to make a network namespace the test says so and passes; with
//! `REQUIRE=browser` (or `all`) it fails. Pictures of what was seen are in `target/browser`.

#[allow(dead_code, reason = "shared with the suite daemon, which does more with it")]
#[path = "../daemon/appliance.rs"]
mod appliance;
#[allow(dead_code, reason = "shared with the visit to the box of `cargo demo`")]
mod driver;
#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;
#[allow(dead_code, reason = "as above")]
#[path = "../kvm/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the suite netns")]
#[path = "../netns/namespace.rs"]
mod namespace;
mod visit;
