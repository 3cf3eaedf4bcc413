//! The same visit to a box with real cards: the one that `cargo demo` leaves up, with its igb, and its daemon and guest in it.

#[allow(dead_code, reason = "shared with the suite browser, which does more with it")]
mod driver;

use std::path::Path;

use crate::driver::Browser;

/// What somebody has written down who ran `cargo demo`.
fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: `cargo demo` ends with both"))
}

/// The suite `browser` runs it (`cargo verify --only browser`). By hand: in another terminal `cargo demo`, then here
/// `DEMO_URL=https://localhost:PORT DEMO_CODE=CODE cargo test --test demo`.
#[test]
fn a_box_with_an_igb_is_claimed_and_set_up() {
    let (url, code) = (told("DEMO_URL"), told("DEMO_CODE"));
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../browser/demo");
    let browser = Browser::start(9516);
    let page = |path: &str| browser.go(&format!("{url}/{path}"));
    let picture = |name: &str| browser.picture(&pictures, name);

    let holds = |number: &str| {
        browser.until(&format!("change {number} holds"), || {
            let newest = "tbody tr:first-child";
            browser.is_there(&format!("{newest} .tag.on"))
                && browser.text_of(&format!("{newest} th")) == number
        });
    };

    page("");
    browser.wait_for("Claim this box");
    browser.fill("#code", &code);
    browser.fill("#name", "ada");
    browser.type_into("#password", "a long password");
    browser.click("form .main");
    browser.wait_for("Overview");
    browser.wait_for("demo");
    picture("01-overview");

    page("devices");
    browser.until_there("td:has(.mark.warn, .mark.bad) p + p");
    picture("02-devices");

    // VFs of the second card; those of the first are a guest's, and that is said.
    page("sriov");
    browser.wait_for("02:00:00:00:01:00");
    let port = browser.text_of("section:nth-of-type(2) .small code");
    picture("03-sriov");
    browser.fill("#count-2", "2");
    browser.click("section:nth-of-type(2) button");
    browser.wait_for("What would be done");
    picture("04-plan");
    browser.click("button[value=apply]");
    holds("2");
    page("sriov");
    browser.until_there("section:nth-of-type(2) tbody tr:nth-of-type(2)");

    // One of them is given away with a click: as a network card, in a text that is looked at first.
    let vf = browser.text_of("section:nth-of-type(2) tbody tr:nth-of-type(2) td code");
    page("devices");
    browser.click(&format!("form:has(input[value='{vf}']) button"));
    browser.wait_for("What would be done");
    let given = browser.value("#text");
    assert!(given.contains("nics:") && given.contains("vf: 1}"), "{given}");

    // A guest with a VF out of the pool.
    page("guests/new");
    browser.type_into("#name", "second");
    browser.fill("#memory", "192MiB");
    browser.click("#boot-kernel");
    browser.type_into("#kernel", "/boot/vmlinux");
    browser.type_into("#initrd", "/boot/initrd");
    browser.type_into("#cmdline", "console=ttyS0 quiet lab.agent lab.ip=10.9.0.3/24");
    browser.type_into("#nic-name-1", "lan");
    browser.click("#nic-on-1 option[value='pool lan-vfs']");
    browser.click("button[value=put]");
    browser.wait_for("What would be done");
    let text = browser.value("#text");
    browser.click("button[value=apply]");
    holds("3");

    // A change of the way in, confirmed; one that nobody confirms.
    let bridge = |mtu: &str| {
        let managed =
            text.replace("management:\n", "management:\n  interface: br0\n  confirm-timeout: 20s\n");
        format!(
            "{managed}\nnetworks:\n  br0: {{type: bridge, ports: {{{port}: {{}}}}, addresses: [10.9.1.1/24]{mtu}}}\n"
        )
    };
    let apply = |text: &str| {
        page("configuration");
        browser.put("#text", text);
        browser.click("button[value=plan]");
        browser.wait_for("What would be done");
        browser.click("button[value=apply]");
    };
    apply(&bridge(""));
    browser.click("#confirm");
    browser.wait_for("The change is confirmed.");
    apply(&bridge(", mtu: 1400"));
    browser.wait_for("A change waits for you.");
    picture("05-waits");
    browser.until_gone("#confirm");
    browser.wait_for("nobody confirmed it within");
    page("networks");
    browser.wait_for("br0");
    picture("06-networks");

    // The guest boots in the console, hears what is typed, and has its VF.
    page("guests/second");
    browser.click("button[value=start]");
    browser.wait_for("Running");
    page("guests/second/console");
    browser.wait_for("@@up");
    browser.type_into("#screen", "t1 cat /sys/class/net/eth0/device/uevent\u{e007}");
    browser.wait_for("DRIVER=igbvf");
    browser.wait_for("@@end t1 0");
    picture("07-console");
    page("guests/second");
    picture("08-guest");
    browser.click("button[popovertarget=sure-kill-second]");
    browser.click("button[value=kill]");
    browser.wait_for("Off");
    page("audit");
    for line in
        ["pull a guest's plug", "start a guest", "confirm a change", "apply the file", "save the file"]
    {
        browser.wait_for(line);
    }
    picture("09-audit");
}
