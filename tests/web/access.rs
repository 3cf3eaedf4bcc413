//! Who may come in, and what he may do then.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::Client;
use crate::served::{PASSWORD, Served, available, wait_until};

#[test]
fn a_box_is_claimed_with_the_code_of_its_console() {
    if !available() {
        return;
    }
    let served = Served::new();
    let claim = |code: &str, name: &str| {
        served.client().send(
            "POST",
            "/api/v1/claim",
            &json!({"code": code, "name": name, "password": PASSWORD}),
        )
    };
    assert_eq!(served.client().get("/").header("location"), Some("/claim"));
    assert_eq!(served.client().get("/api/v1/overview").status, 401);
    assert_eq!(claim("0000-0000-0000", "eve").status, 403);
    let ada = served.ada();
    assert_eq!(ada.get("/api/v1/me").json()["role"], "admin");
    assert_eq!(ada.get("/api/v1/overview").status, 200);
    assert_eq!(claim(&served.code(), "eve").status, 403, "a code is good once");
    assert!(served.client().get("/").header("location").unwrap().starts_with("/login"));

    // Root on the box always gets in again; but not with what is too old.
    let code = served.new_code();
    let file = served.path("state/web/code.json");
    let good = fs::read_to_string(&file).unwrap();
    let mut old: Value = serde_json::from_str(&good).unwrap();
    old["expires"] = json!(old["expires"].as_u64().unwrap() - 3601);
    fs::write(&file, old.to_string()).unwrap();
    let answer = claim(&code, "ada");
    assert!(answer.status == 403 && answer.body.contains("too old"), "{answer:?}");
    fs::write(&file, good).unwrap();
    let reset = json!({"code": code, "name": "ada", "password": "another password"});
    assert_eq!(served.client().send("POST", "/api/v1/claim", &reset).status, 200);
    assert_eq!(ada.get("/api/v1/me").status, 401, "what she had before has ended");
    assert_eq!(served.login("ada", PASSWORD).status, 401);
    assert_eq!(served.login("ada", "another password").status, 200);
}

#[test]
fn roles_tokens_and_other_sites_have_their_bounds() {
    if !available() {
        return;
    }
    let served = Served::new();
    let ada = served.ada();
    let vera = served.user(&ada, "vera", "viewer", false);
    let otto = served.user(&ada, "otto", "operator", false);
    let olga = served.user(&ada, "olga", "admin", false);
    let start = "/api/v1/guests/none/start";
    assert_eq!(vera.send("POST", start, &Value::Null).status, 403);
    assert_eq!(otto.send("POST", start, &Value::Null).status, 404, "he may, and there is none");

    let config = ada.get("/api/v1/config");
    let (tag, text) = (config.header("etag").unwrap().to_owned(), config.body.clone());
    let save = |who: &Client, text: &str, tag: &str| {
        let who = who.with("if-match", tag);
        who.try_ask("PUT", "/api/v1/config", "application/yaml", text).unwrap()
    };
    let text =
        serde_json::from_str::<Value>(&text).map_or(text, |json| json["text"].as_str().unwrap().to_owned());
    let more = format!("{text}host: {{iommu: preferred}}\n");
    assert_eq!(save(&vera, &more, &tag).status, 403);
    assert_eq!(save(&otto, &more, &tag).status, 403);
    let devices = format!("{text}devices: {{gpu: {{path: \"0000:01:00.0\"}}}}\n");
    let refused = save(&olga, &devices, &tag);
    assert!(matches!(refused.status, 403 | 422), "{refused:?}");

    // Another site's page, or name.
    assert_eq!(olga.with("x-csrf-token", "x").send("POST", "/api/v1/tokens", &Value::Null).status, 403);
    assert_eq!(
        olga.with("origin", "https://evil.example").send("POST", "/api/v1/logout", &Value::Null).status,
        403
    );
    assert_eq!(olga.with("host", "evil.example").get("/api/v1/me").status, 421);
    assert_eq!(olga.with("host", "box.example").get("/api/v1/me").status, 200);
    assert_eq!(ada.with("x-csrf-token", "").form("/logout", "csrf=wrong").status, 403);

    // A token may less than its user, and ends with him.
    let made = otto.send("POST", "/api/v1/tokens", &json!({"name": "ci", "role": "viewer", "days": 1}));
    assert_eq!(made.status, 201, "{made:?}");
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    let program = served.client().with("authorization", &format!("Bearer {secret}"));
    assert_eq!(program.get("/api/v1/guests").status, 200);
    assert_eq!(program.get("/metrics").status, 200);
    assert_eq!(program.send("POST", start, &Value::Null).status, 403);
    assert_eq!(ada.send("DELETE", "/api/v1/users/otto", &Value::Null).status, 204);
    assert_eq!(program.get("/api/v1/guests").status, 401);
    assert_eq!(otto.get("/api/v1/guests").status, 401);

    // Root needs no password.
    assert_eq!(served.root().get("/api/v1/me").json()["name"], "uid 0");

    // Each change is noted, and nothing that is secret is anywhere.
    let audit = ada.get("/api/v1/audit?limit=100");
    for what in ["Claim the box", "Add a user", "Log in", "Make a token", "Remove a user"] {
        assert!(audit.body.contains(what), "{what}: {}", audit.body);
    }
    let cookie = ada.headers.iter().find(|(name, _)| name == "cookie").unwrap().1.clone();
    let secrets = [PASSWORD, &secret[4..], cookie.split_once('=').unwrap().1];
    let mut texts = vec![audit.body, served.log(), ada.get("/api/v1/log").body];
    collect(&served.path("state"), &mut texts);
    collect(&served.path("log"), &mut texts);
    for text in texts {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}

#[test]
fn wrong_tries_and_sessions_outlive_the_web_process_and_its_memory_does_not() {
    if !available() {
        return;
    }
    let served = Served::new();
    let ada = served.ada();
    let resident = |served: &Served| {
        let text = fs::read_to_string(format!("/proc/{}/status", served.web())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.map_or(0, |line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap())
    };
    served.restart_web();
    assert_eq!(ada.get("/api/v1/me").status, 200, "she is logged in still");
    let before = resident(&served);
    // From an address of loopback that nobody has logged in from there is none but this one: another user's name is as good.
    for _ in 0..10 {
        assert_eq!(served.login("eve", "wrong password").status, 401);
    }
    let waits = served.login("eve", "wrong password");
    assert_eq!(waits.status, 429);
    assert!(waits.header("retry-after").is_some(), "{waits:?}");
    let after = resident(&served);
    eprintln!("the web process: {before} KiB resident, {after} KiB after eleven logins");
    assert!(after < before + 8 * 1024, "19 MiB of a password are given back: {before} KiB, then {after} KiB");
    // What a crash may forget is the last second.
    let limits = served.path("state/web/limits.json");
    wait_until("the tries are on disk", || {
        let text = fs::read_to_string(&limits).unwrap_or_default();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        json["full-at"]["user eve"].as_u64().is_some_and(|full| full > now + 480)
    });
    served.restart_web();
    assert_eq!(served.login("eve", "wrong password").status, 429);
    assert_eq!(served.login("ada", PASSWORD).status, 200, "she has tries of her own");
}

fn collect(folder: &Path, texts: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), texts);
        } else if let Ok(text) = fs::read(entry.path()) {
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
}
