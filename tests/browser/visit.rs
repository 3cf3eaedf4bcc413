//! One visit, from the box that nobody has claimed to the audit log.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::appliance::Appliance;
use crate::driver::Browser;
use crate::image;
use crate::machine::available;
use crate::namespace::alone;

const URL: &str = "http://127.0.0.1:8480";

/// Whether a browser is there.
fn has_browser() -> bool {
    let there = |program: &str| {
        let run = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    if there("chromium") && there("chromedriver") {
        return true;
    }
    let required = std::env::var("REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|suite| matches!(suite.trim(), "browser" | "all"));
    assert!(!required, "the suite browser is required, and there is no chromium with its chromedriver");
    eprintln!(
        "skipped: there is no chromium with its chromedriver (Debian's packages chromium and chromium-driver)"
    );
    false
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(done.success(), "ip {words}");
}

#[test]
fn from_the_claim_to_the_audit_log() {
    if available() && has_browser() {
        alone("visit::from_the_claim_to_the_audit_log", visit);
    }
}

fn visit() {
    ip("link set lo up");
    ip("link add up0 type veth peer name far0");
    ip("link set far0 up");
    let first = "# The box of the test.\nversion: 1\n\nmanagement:\n  listen: [\"http://127.0.0.1:8480\"]\n  confirm-timeout: 10s\n";
    let appliance = Appliance::new(first);
    let images = appliance.path("state").join("images");
    fs::create_dir_all(&images).unwrap();
    let kernel = images.join("kernel");
    fs::copy(image::elf(), &kernel).unwrap();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../browser");
    let mut daemon = appliance.daemon(&["--web"]);
    daemon.wait_for("good for an hour: ");
    let log = daemon.log();
    let code = log.split("good for an hour: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let browser = Browser::start(9515);

    // Claiming it logs in; a wrong code does not.
    browser.go(URL);
    browser.wait_for("Claim this box");
    browser.type_into("#code", "0000-0000-0000");
    browser.type_into("#name", "ada");
    browser.type_into("#password", "a long password");
    browser.click("form .main");
    browser.until_there("[role=alert]");
    browser.picture(&pictures, "01-claim");
    browser.fill("#code", code);
    browser.fill("#name", "ada");
    browser.type_into("#password", "a long password");
    browser.click("form .main");
    browser.wait_for("Overview");
    browser.picture(&pictures, "02-overview");
    browser.click("form[action='/logout'] button");
    browser.wait_for("Lost your password?");
    browser.type_into("#name", "ada");
    browser.type_into("#password", "a long password");
    browser.click("form .main");
    browser.wait_for("Overview");

    // What cannot be given away says why.
    browser.go(&format!("{URL}/devices"));
    browser.until_there("td:has(.mark.warn, .mark.bad) p + p");
    browser.picture(&pictures, "03-devices");

    // A guest by the form: its text is looked at first, and comments stay.
    browser.go(&format!("{URL}/guests/new"));
    browser.type_into("#name", "small");
    browser.fill("#memory", "16MiB");
    browser.click("#boot-kernel");
    browser.type_into("#kernel", &kernel.display().to_string());
    browser.type_into("#cmdline", "test=obey");
    browser.click("button[value=put]");
    browser.wait_for("What would be done");
    let text = browser.value("#text");
    assert!(text.starts_with("# The box of the test.") && text.contains("test=obey"), "{text}");
    browser.picture(&pictures, "04-plan");
    browser.click("button[value=apply]");
    browser.wait_for("Confirmed");

    // A change of the way in is put back when nobody confirms it.
    let bridge = "networks:\n  br0: {type: bridge, ports: {up0: {}}, addresses: [10.9.0.1/24]}\n";
    let managed = |mtu: &str| {
        let bridge = bridge.replace("}\n", &format!("{mtu}}}\n"));
        text.replace("management:\n", "management:\n  interface: br0\n") + &bridge
    };
    let apply = |text: &str| {
        browser.go(&format!("{URL}/configuration"));
        browser.put("#text", text);
        browser.click("button[value=plan]");
        browser.wait_for("What would be done");
        browser.click("button[value=apply]");
    };
    apply(&managed(""));
    browser.click("#confirm");
    browser.wait_for("The change is confirmed.");
    apply(&managed(", mtu: 1400"));
    browser.wait_for("A change waits for you.");
    browser.picture(&pictures, "05-waits");
    browser.until_gone("#confirm");
    browser.wait_for("nobody confirmed it within");
    browser.picture(&pictures, "06-put-back");
    apply(&managed(", mtu: 1400 "));
    browser.click("#confirm");
    browser.wait_for("The change is confirmed.");

    // The guest boots in the console, hears what is typed, and its screen outlives the page.
    browser.go(&format!("{URL}/guests/small"));
    browser.click("button[value=start]");
    browser.wait_for("Running");
    browser.go(&format!("{URL}/guests/small/console"));
    browser.wait_for("ready");
    browser.type_into("#screen", "hello there");
    browser.wait_for("hello there");
    browser.reload();
    browser.wait_for("hello there");
    browser.picture(&pictures, "07-console");

    // An image comes in whole; one of that name again does not, and that is said.
    let disk = appliance.path("disk.raw");
    fs::write(&disk, (0..5_u32 << 20).map(|at| at.to_le_bytes()[1]).collect::<Vec<u8>>()).unwrap();
    let upload = || {
        browser.go(&format!("{URL}/images"));
        browser.type_into("#image", &disk.display().to_string());
        browser.click("#upload .main");
    };
    upload();
    browser.wait_for("disk.raw");
    browser.until_there("form[action='/images/remove'] input[value='disk.raw']");
    assert!(fs::read(images.join("disk.raw")).unwrap() == fs::read(&disk).unwrap());
    upload();
    browser.until_there("#failed:not([hidden])");
    browser.picture(&pictures, "08-images");

    // The daemon's log goes on as one looks at it.
    browser.go(&format!("{URL}/logs"));
    browser.wait_for("Guest `small` runs");
    appliance.vm(&["stop", "small", "--timeout", "0"]);
    browser.wait_for("Guest `small` has ended");
    browser.picture(&pictures, "09-logs");
    browser.go(&format!("{URL}/guests/small"));
    browser.click("button[value=start]");
    browser.wait_for("Running");

    // It is stopped, and all of it stands in the audit log.
    browser.go(&format!("{URL}/guests/small"));
    browser.click("button[popovertarget=sure-kill-small]");
    browser.click("button[value=kill]");
    browser.wait_for("Off");
    browser.go(&format!("{URL}/audit"));
    for line in
        ["pull a guest's plug", "start a guest", "confirm a change", "apply the file", "save the file"]
    {
        browser.wait_for(line);
    }
    browser.picture(&pictures, "10-audit");
}
