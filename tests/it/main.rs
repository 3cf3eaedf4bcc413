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
