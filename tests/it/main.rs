//! The whole program from outside: what it prints and how it ends. `TRYCMD=overwrite` takes what it prints now for right.

/// `tests/it/NAME.md` is run in a copy of `tests/it/NAME.in`.
#[test]
fn what_is_printed_is_what_the_pages_say() {
    trycmd::TestCases::new().case("tests/it/*.md");
}

/// Examples are good files.
#[test]
fn every_example_is_a_good_file() {
    let examples = std::fs::read_dir("configs").unwrap().map(|entry| entry.unwrap().path());
    let examples: Vec<_> =
        examples.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    assert!(examples.len() >= 5);
    for example in examples {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_throughway"))
            .arg("check")
            .arg(&example)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            example.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The schema in `configs/` is that of the types.
#[test]
fn the_schema_is_current() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_throughway")).arg("schema").output().unwrap();
    let kept = std::fs::read("configs/appliance.schema.json").unwrap();
    assert!(output.stdout == kept, "write it anew: throughway schema > configs/appliance.schema.json");
}

/// The help of each command begins with what the list of commands says of it.
#[test]
fn the_help_of_a_command_is_about_that_command() {
    let help = |words: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_throughway"))
            .args(words)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut seen = 0;
    for group in [&[][..], &["vm"], &["image"], &["devices"]] {
        let all = help(group);
        let (_, list) = all.split_once("Commands:\n").unwrap();
        let (list, _) = list.split_once("\n\n").unwrap();
        // Names stand two columns from the edge, what goes on far from it.
        let names = list.lines().filter(|line| !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
            let own = help(&[group, &[name]].concat());
            let (about, _) = own.split_once("\n\n").unwrap();
            let told = format!("{name} {}", plain(about));
            assert!(plain(list).contains(&told), "{group:?} {name}: {about}");
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}
