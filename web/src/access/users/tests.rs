//! The file of users, read, written and mistreated.

use proptest::prelude::*;

use super::*;

fn add(users: &mut Users, name: &str, role: Role) -> Result<(), Problem> {
    users.change(|all| {
        all.push(entry(name, role));
        Ok(())
    })
}

fn entry(name: &str, role: Role) -> Entry {
    Entry { name: name.into(), role, assign_devices: false, password: None, created: Some(7) }
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.yaml");
    let mut users = Users::new(path.clone());
    assert!(users.now().unwrap().is_empty());
    users
        .change(|all| {
            all.push(entry("zoe", Role::Viewer));
            all.push(entry("ada", Role::Admin));
            Ok(())
        })
        .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Who may come in"), "{text}");
    assert!(text.contains("version: 1\nusers:\n- name: ada\n  role: admin\n"), "{text}");
    let names: Vec<_> = Users::new(path).now().unwrap().iter().map(|user| user.name.clone()).collect();
    assert_eq!(names, ["ada", "zoe"]);
}

#[test]
fn what_root_writes_by_hand_counts_at_once_and_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.yaml");
    let mut users = Users::new(path.clone());
    add(&mut users, "ada", Role::Admin).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}- {{name: bob, role: viewer}}\n")).unwrap();
    add(&mut users, "eve", Role::Operator).unwrap();
    let names: Vec<_> = users.now().unwrap().iter().map(|user| user.name.clone()).collect();
    assert_eq!(names, ["ada", "bob", "eve"]);
}

#[test]
fn a_wrong_file_lets_nobody_in_and_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.yaml");
    for (wrong, said) in [
        ("version: 2\n", "version 2"),
        ("version: 1\nuser: []\n", "unknown field"),
        ("version: 1\nusers: [{name: ada, role: boss}]\n", "line 2"),
        ("version: 1\nusers: [{name: ada, role: admin, password: secret}]\n", "no hash of Argon2id"),
        ("version: 1\nusers: [{name: Ada, role: admin}]\n", "small letters"),
        ("version: 1\nusers: [{name: a, role: admin}, {name: a, role: viewer}]\n", "two users a"),
    ] {
        std::fs::write(&path, wrong).unwrap();
        let mut users = Users::new(path.clone());
        for _ in 0..2 {
            let problem = users.now().map(<[_]>::len).unwrap_err();
            assert_eq!(problem.status, 503);
            assert!(problem.detail.contains(said), "{problem}");
        }
        assert!(add(&mut users, "ada", Role::Admin).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), wrong);
        std::fs::write(&path, "version: 1\n").unwrap();
        assert!(users.now().unwrap().is_empty());
    }
}

#[test]
fn a_change_that_says_no_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut users = Users::new(folder.path().join("users.yaml"));
    let refused = users.change(|all| {
        all.push(entry("ada", Role::Admin));
        Err::<(), _>(Problem::conflict("no"))
    });
    assert_eq!(refused.unwrap_err().status, 409);
    assert!(users.now().unwrap().is_empty());
    assert!(!folder.path().join("users.yaml").exists());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn names_say_what_they_are(name in "\\PC{0,40}") {
        if is_name(&name) {
            prop_assert!(!name.contains(['/', ' ', '\n', ':', '"', '<', '%']));
            let text = format!("version: 1\nusers: [{{name: '{name}', role: viewer}}]\n");
            prop_assert_eq!(&parse(&text).ok().unwrap()[0].name, &name);
        }
    }
}
