//! The description of the API, attacked: schemathesis makes requests of it that are right, nearly right and wrong, without a login
//! and with that of each role.
//!
//! `ATTACK=150 cargo test -p throughway --test web attack -- --nocapture` gives each of the four so many seconds; without, they
//! have ten. Schemathesis is `pip install schemathesis`; where it is not in the path, `SCHEMATHESIS` says where. Without it the
//! test says so and passes; with `REQUIRE=attack` it fails.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::client::Client;
use crate::served::{PASSWORD, Served, available};

/// What is asked of each answer. That what the description allows is also accepted cannot be: a tag is an earlier answer's.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      unsupported_method";

/// What hyper itself answers, before any of ours is asked: a length that is no number is 400 without a word (RFC 9112, 6.3).
const HOOKS: &str = "import schemathesis


@schemathesis.hook
def filter_headers(context, headers):
    return not headers or all(name.lower() != 'content-length' for name in headers)
";

fn schemathesis() -> Option<String> {
    let program = std::env::var("SCHEMATHESIS").unwrap_or_else(|_| "schemathesis".to_owned());
    let there = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(program);
    }
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|suite| suite.trim() == "attack"), "`{program}` is not there");
    eprintln!("skipped: `{program}` is not there");
    None
}

#[test]
fn the_api_is_attacked_by_each_role() {
    let Some(program) = schemathesis() else { return };
    if !available() {
        return;
    }
    let seconds: u32 = std::env::var("ATTACK").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let served = Served::new();
    let ada = served.ada();
    let mut tokens = vec![("nobody", None)];
    for (name, role) in [("vera", "viewer"), ("otto", "operator"), ("olga", "admin")] {
        let client = served.user(&ada, name, role, false);
        let made = client.send("POST", "/api/v1/tokens", &json!({"name": "attack", "role": role, "days": 1}));
        tokens.push((role, Some(made.json()["secret"].as_str().unwrap().to_owned())));
    }
    let state =
        |ada: &Client| ["/api/v1/users", "/api/v1/config", "/api/v1/changes"].map(|path| ada.get(path).body);
    let before = state(&ada);
    let hooks = served.path("hooks.py");
    std::fs::write(&hooks, HOOKS).unwrap();
    let mut failed = Vec::new();
    for (role, token) in &tokens {
        let report = served.path(&format!("{role}.har"));
        let mut command = Command::new(&program);
        command.arg("run").arg(format!("http://{}/api/v1/openapi.json", served.address()));
        command.args(["--checks", CHECKS, "--exclude-path-regex", "/events$", "--request-timeout", "60"]);
        command.args(["--max-time", &seconds.to_string(), "--continue-on-failure", "--no-color"]);
        command.args(["--generation-database", "none", "--report-har-path"]).arg(&report);
        if let Some(token) = token {
            command.arg("-H").arg(format!("Authorization: Bearer {token}"));
        }
        command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", served.path(""));
        let output = command.current_dir(served.path("")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("=== {role}\n{}", said.rsplit_once("SUMMARY").map_or(&*said, |(_, summary)| summary));
        if !output.status.success() {
            failed.push(format!("{role}: {said}"));
        }
        let answers = std::fs::read_to_string(&report).unwrap_or_default();
        assert!(answers.len() > 1000, "{role}: nothing was asked");
        for secret in ["$argon2id", "throughway-plain=", PASSWORD] {
            assert!(!answers.contains(secret), "{secret} was in an answer to {role}");
        }
        if *role != "admin" {
            assert!(state(&ada) == before, "{role} has changed something");
        }
    }
    // It is there still, and well.
    assert_eq!(ada.get("/api/v1/overview").status, 200);
    let log = served.log();
    assert!(!log.contains("panicked"), "{log}");
    for (_, token) in &tokens {
        assert!(token.as_ref().is_none_or(|token| !log.contains(&token[4..])), "a token is in the log");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
