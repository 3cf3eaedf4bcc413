//! The claim, logins, users, tokens, and how often one may be wrong.

use super::*;

#[tokio::test]
async fn the_code_makes_the_first_administrator_and_no_second_one() {
    let owned = new_box();
    let claim = |code: String, name: &str, password: &str| {
        let body = json!({"code": code, "name": name, "password": password});
        let somebody = owned.somebody();
        async move { somebody.send(Method::POST, "/api/v1/claim", body).await }
    };
    assert_eq!(claim("0000-0000-0000".into(), "ada", PASSWORD).await.status, 403);
    assert_eq!(claim(owned.code(), "Ada L.", PASSWORD).await.status, 400);
    assert_eq!(claim(owned.code(), "ada", "short").await.status, 400);
    assert!(!owned.access.claimed().unwrap());
    let ada = owned.ada().await;
    let me = ada.me().await.json();
    assert_eq!(
        (&me["name"], &me["role"], &me["assign-devices"]),
        (&json!("ada"), &json!("admin"), &json!(true))
    );
    assert!(owned.access.claimed().unwrap());
    assert_eq!(claim(owned.code(), "eve", PASSWORD).await.status, 403);
    // A box that is claimed prints no code when it starts again, nor for who asks.
    owned.again().access.offer_code().unwrap();
    assert_eq!(owned.printed.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_old_code_is_none_and_the_page_prints_another() {
    let owned = new_box();
    let first = owned.code();
    owned.access.offer_code().unwrap();
    assert_eq!(owned.printed.lock().unwrap().len(), 1);
    owned.later(CODE_LASTS);
    let body = json!({"code": first, "name": "ada", "password": PASSWORD});
    let answered = owned.somebody().send(Method::POST, "/api/v1/claim", body).await;
    assert_eq!(answered.status, 403);
    assert!(answered.detail().contains("too old"), "{answered:?}");
    owned.access.offer_code().unwrap();
    assert_ne!(owned.code(), first);
    owned.ada().await;
}

#[tokio::test]
async fn two_who_have_the_same_code_do_not_both_come_in() {
    let owned = new_box();
    let code = owned.code();
    let (one, other) = futures_util::future::join(
        owned.access.claim(FAR, &code, "ada", PASSWORD.into()),
        owned.access.claim(FAR, &code, "eve", PASSWORD.into()),
    )
    .await;
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1);
    assert_eq!(owned.access.users().now().unwrap().len(), 1);
}

#[tokio::test]
async fn root_gets_back_in_who_has_lost_everything() {
    let owned = new_box();
    let ada = owned.ada().await;
    // As `throughway web code` does it.
    let (code, text) = new_code(owned.access.now()).unwrap();
    std::fs::write(owned.folder.path().join(CODE_FILE), text).unwrap();
    let body = json!({"code": code, "name": "ada", "password": "another password"});
    let answered = owned.somebody().send(Method::POST, "/api/v1/claim", body).await;
    assert_eq!(answered.status, 200);
    assert_eq!(ada.me().await.status, 401);
    assert_eq!(owned.somebody().keeps(&answered).me().await.json()["name"], "ada");
    assert_eq!(owned.somebody().login("ada", PASSWORD).await.status, 401);
    assert_eq!(owned.somebody().login("ada", "another password").await.status, 200);
}

#[tokio::test]
async fn a_session_outlives_a_restart_and_ends_with_its_password_or_its_user() {
    let owned = new_box();
    let ada = owned.ada().await;
    let eve = owned.user(&ada, "eve", "operator", false).await;
    let after = owned.again();
    assert_eq!(Caller { app: after.app(), ..eve.clone() }.me().await.json()["role"], "operator");
    // By another hand.
    let file = owned.folder.path().join("users.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("role: operator", "role: viewer")).unwrap();
    assert_eq!(eve.me().await.json()["role"], "viewer");
    let other = PASSWORD.to_owned() + "!";
    let changed = ada.send(Method::PATCH, "/api/v1/users/eve", json!({"password": other})).await;
    assert_eq!(changed.status, 200);
    assert_eq!(eve.me().await.status, 401);
    let eve = owned.somebody().keeps(&owned.somebody().login("eve", &other).await);
    assert_eq!(ada.send(Method::DELETE, "/api/v1/users/eve", Value::Null).await.status, 204);
    assert_eq!(eve.me().await.status, 401);
    std::fs::write(&file, "users: wrong").unwrap();
    assert_eq!(ada.me().await.status, 503);
    assert_eq!(owned.somebody().login("ada", PASSWORD).await.status, 503);
}

#[tokio::test]
async fn logging_out_ends_the_session_and_what_is_streamed_to_it() {
    let owned = new_box();
    let ada = owned.ada().await;
    let secret = ada.headers["cookie"].to_str().unwrap().split_once('=').unwrap().1.to_owned();
    let login = owned.access.by_session(FAR, &secret, true).unwrap().unwrap();
    let mut ended = Box::pin(owned.access.ended(&login));
    assert!(futures_util::FutureExt::now_or_never(ended.as_mut()).is_none());
    let out = ada.send(Method::POST, "/api/v1/logout", Value::Null).await;
    assert_eq!(out.status, 204);
    assert!(out.headers[SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert_eq!(ada.me().await.status, 401);
    assert_eq!(ada.send(Method::POST, "/api/v1/logout", Value::Null).await.status, 401);
}

#[tokio::test]
async fn a_page_that_asks_by_itself_keeps_nobody_logged_in() {
    let owned = new_box();
    let ada = owned.ada().await;
    let page = ada.clone().with("x-live", "1");
    for _ in 0..6 {
        assert_eq!(page.me().await.status, 200);
        owned.later(sessions::IDLE / 6);
    }
    assert_eq!(page.me().await.status, 401);
    assert_eq!(ada.me().await.status, 401);
}

#[tokio::test]
async fn other_rights_end_what_is_streamed() {
    let owned = new_box();
    let ada = owned.ada().await;
    let eve = owned.user(&ada, "eve", "operator", false).await;
    let secret = eve.headers["cookie"].to_str().unwrap().split_once('=').unwrap().1.to_owned();
    let login = owned.access.by_session(FAR, &secret, true).unwrap().unwrap();
    let ended = owned.access.ended(&login);
    let lower = ada.send(Method::PATCH, "/api/v1/users/eve", json!({"role": "viewer"}));
    let (_, lowered) =
        tokio::time::timeout(Duration::from_secs(60), futures_util::future::join(ended, lower))
            .await
            .unwrap();
    assert_eq!(lowered.status, 200);
    assert_eq!(eve.me().await.json()["role"], "viewer");
}

#[tokio::test]
async fn ones_own_password_is_changed_by_saying_the_old_one() {
    let owned = new_box();
    let ada = owned.ada().await;
    let elsewhere = owned.login("ada").await;
    let change = |old: &str, new: &str| {
        let (ada, body) = (ada.clone(), json!({"old": old, "new": new}));
        async move { ada.send(Method::PUT, "/api/v1/me/password", body).await }
    };
    assert_eq!(change("wrong", "another password").await.status, 403);
    assert_eq!(change(PASSWORD, "short").await.status, 400);
    assert_eq!(
        ada.send(Method::PATCH, "/api/v1/users/ada", json!({"password": "another password"})).await.status,
        409
    );
    assert_eq!(ada.me().await.status, 200);
    let changed = change(PASSWORD, "another password").await;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(owned.somebody().keeps(&changed).me().await.status, 200);
    assert_eq!(ada.me().await.status, 401);
    assert_eq!(elsewhere.me().await.status, 401);
    assert_eq!(owned.somebody().login("ada", PASSWORD).await.status, 401);
}

#[tokio::test]
async fn roles_may_what_they_may() {
    let owned = new_box();
    let ada = owned.ada().await;
    let vera = owned.user(&ada, "vera", "viewer", false).await;
    let otto = owned.user(&ada, "otto", "operator", false).await;
    let new = json!({"name": "x", "role": "viewer", "password": PASSWORD});
    for one in [&vera, &otto] {
        assert_eq!(one.get("/api/v1/users").await.status, 403);
        assert_eq!(one.send(Method::POST, "/api/v1/users", new.clone()).await.status, 403);
        assert_eq!(one.send(Method::PATCH, "/api/v1/users/vera", json!({"role": "admin"})).await.status, 403);
        assert_eq!(one.send(Method::DELETE, "/api/v1/users/ada", Value::Null).await.status, 403);
        let token = json!({"name": "x", "role": "admin"});
        assert_eq!(one.send(Method::POST, "/api/v1/tokens", token).await.status, 403);
    }
    assert_eq!(ada.get("/api/v1/users").await.json().as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn nobody_gives_or_takes_the_right_to_assign_devices_who_has_it_not() {
    let owned = new_box();
    let ada = owned.ada().await;
    let olga = owned.user(&ada, "olga", "admin", false).await;
    owned.user(&ada, "vera", "viewer", false).await;
    let yes = json!({"assign-devices": true});
    for name in ["olga", "vera"] {
        assert_eq!(olga.send(Method::PATCH, &format!("/api/v1/users/{name}"), yes.clone()).await.status, 403);
    }
    for change in
        [json!({"password": "another password"}), json!({"role": "viewer"}), json!({"assign-devices": false})]
    {
        assert_eq!(olga.send(Method::PATCH, "/api/v1/users/ada", change).await.status, 403);
    }
    assert_eq!(olga.send(Method::DELETE, "/api/v1/users/ada", Value::Null).await.status, 403);
    let new = json!({"name": "eve", "role": "viewer", "assign-devices": true, "password": PASSWORD});
    assert_eq!(olga.send(Method::POST, "/api/v1/users", new).await.status, 403);
    let token = json!({"name": "x", "role": "admin", "assign-devices": true});
    assert_eq!(olga.send(Method::POST, "/api/v1/tokens", token).await.status, 403);
    assert_eq!(ada.send(Method::PATCH, "/api/v1/users/olga", yes).await.status, 200);
}

#[tokio::test]
async fn somebody_is_always_left_to_administer_the_box() {
    let owned = new_box();
    let ada = owned.ada().await;
    assert_eq!(ada.send(Method::DELETE, "/api/v1/users/ada", Value::Null).await.status, 409);
    assert_eq!(ada.send(Method::PATCH, "/api/v1/users/ada", json!({"role": "operator"})).await.status, 409);
    assert_eq!(ada.send(Method::DELETE, "/api/v1/users/nobody", Value::Null).await.status, 404);
    owned.user(&ada, "olga", "admin", false).await;
    assert_eq!(
        ada.send(
            Method::POST,
            "/api/v1/users",
            json!({"name": "olga", "role": "viewer", "password": PASSWORD})
        )
        .await
        .status,
        409
    );
    assert_eq!(ada.send(Method::DELETE, "/api/v1/users/ada", Value::Null).await.status, 204);
    assert_eq!(ada.me().await.status, 401);
}

#[tokio::test]
async fn a_token_may_what_it_says_while_its_user_may_and_until_its_day() {
    let owned = new_box();
    let ada = owned.ada().await;
    let otto = owned.user(&ada, "otto", "operator", false).await;
    let made =
        otto.send(Method::POST, "/api/v1/tokens", json!({"name": "ci", "role": "operator", "days": 2})).await;
    assert_eq!(made.status, 201, "{made:?}");
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    let program = owned.somebody().with("authorization", &format!("Bearer {secret}"));
    let me = program.me().await.json();
    assert_eq!(
        (&me["name"], &me["role"], &me["token"], &me["csrf"]),
        (&json!("otto"), &json!("operator"), &json!("ci"), &Value::Null)
    );
    // No CSRF token, and no cookie beside it helps.
    assert_eq!(program.form("/forgets", "").await.text, "otto");
    let wrong = ada.clone().with("authorization", "Bearer twy_wrong");
    assert_eq!(wrong.me().await.status, 401);
    assert_eq!(ada.clone().with("authorization", "Basic YWRhOmFkYQ==").me().await.status, 401);
    // A token makes none, and nobody; its list is its user's.
    for (path, body) in
        [("/api/v1/tokens", json!({"name": "y", "role": "viewer"})), ("/api/v1/logout", Value::Null)]
    {
        let status = program.send(Method::POST, path, body).await.status.as_u16();
        assert!(matches!(status, 403 | 409), "{path} {status}");
    }
    assert_eq!(program.get("/api/v1/tokens").await.json().as_array().unwrap().len(), 1);
    let lower = ada.send(Method::PATCH, "/api/v1/users/otto", json!({"role": "viewer"})).await;
    assert_eq!((lower.status.as_u16(), program.me().await.json()["role"].as_str()), (200, Some("viewer")));
    owned.later(2 * 24 * 60 * 60);
    assert_eq!(program.me().await.status, 401);
}

#[tokio::test]
async fn an_administrators_token_manages_no_people() {
    let owned = new_box();
    let ada = owned.ada().await;
    let made = ada
        .send(Method::POST, "/api/v1/tokens", json!({"name": "all", "role": "admin", "assign-devices": true}))
        .await;
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    let program = owned.somebody().with("authorization", &format!("Bearer {secret}"));
    assert_eq!(program.get("/api/v1/users").await.status, 200);
    let new = json!({"name": "x", "role": "viewer", "password": PASSWORD});
    assert_eq!(program.send(Method::POST, "/api/v1/users", new).await.status, 403);
    assert_eq!(program.send(Method::DELETE, "/api/v1/users/ada", Value::Null).await.status, 403);
    let id = made.json()["token"]["id"].as_str().unwrap().to_owned();
    assert_eq!(program.send(Method::DELETE, &format!("/api/v1/tokens/{id}"), Value::Null).await.status, 403);
    let vera = owned.user(&ada, "vera", "viewer", false).await;
    assert_eq!(vera.get("/api/v1/tokens").await.text, "[]");
    assert_eq!(vera.send(Method::DELETE, &format!("/api/v1/tokens/{id}"), Value::Null).await.status, 404);
    assert_eq!(ada.send(Method::DELETE, &format!("/api/v1/tokens/{id}"), Value::Null).await.status, 204);
    assert_eq!(program.me().await.status, 401);
    for bad in [
        json!({"name": "", "role": "viewer"}),
        json!({"name": "x", "role": "viewer", "days": 0}),
        json!({"name": "x", "role": "viewer", "days": 400}),
        json!({"name": "x", "role": "boss"}),
        json!({"name": "x\n", "role": "viewer", "more": 1}),
    ] {
        assert_eq!(ada.send(Method::POST, "/api/v1/tokens", bad.clone()).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_token_goes_with_its_user_and_does_not_come_back_with_his_name() {
    let owned = new_box();
    let ada = owned.ada().await;
    let eve = owned.user(&ada, "eve", "admin", false).await;
    let made = eve.send(Method::POST, "/api/v1/tokens", json!({"name": "all", "role": "admin"})).await;
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    let program = owned.somebody().with("authorization", &format!("bearer {secret}"));
    assert_eq!(program.me().await.status, 200);
    ada.send(Method::DELETE, "/api/v1/users/eve", Value::Null).await;
    assert_eq!(program.me().await.status, 401);
    owned.user(&ada, "eve", "viewer", false).await;
    assert_eq!(program.me().await.status, 401);
}

#[tokio::test]
async fn who_is_wrong_too_often_waits() {
    let owned = new_box();
    owned.ada().await;
    let stranger = owned.somebody().from(Peer { address: Some(address(66)), ..FAR });
    for _ in 0..10 {
        assert_eq!(stranger.login("ada", "some password").await.status, 401);
    }
    let waits = stranger.login("ada", PASSWORD).await;
    assert_eq!(waits.status, 429);
    let wait: u64 = waits.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    // From wherever, but for where she has logged in from.
    let elsewhere = owned.somebody().from(Peer { address: Some(address(67)), ..FAR });
    assert_eq!(elsewhere.login("ada", PASSWORD).await.status, 429);
    assert_eq!(owned.somebody().login("ada", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn strangers_lock_nobody_out_where_he_has_been_and_wait_over_a_restart() {
    let owned = new_box();
    owned.ada().await;
    owned.login("ada").await;
    let stranger = owned.somebody().from(Peer { address: Some(address(66)), ..FAR });
    while stranger.login("ada", "some password").await.status != 429 {}
    // The file has it in a second.
    let file = owned.folder.path().join("limits.json");
    let full_at =
        || serde_json::from_str::<Value>(&std::fs::read_to_string(&file)?).map_err(std::io::Error::from);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while full_at().unwrap()["full-at"]["user ada"] != owned.access.now() + 600 {
        assert!(std::time::Instant::now() < deadline, "{:?}", full_at());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = owned.again();
    let stranger = Caller { app: after.app(), ..stranger };
    assert_eq!(stranger.login("ada", PASSWORD).await.status, 429);
    after.login("ada").await;
    after.later(61);
    assert_eq!(stranger.login("ada", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn an_address_has_so_many_tries_whatever_the_names_are() {
    let owned = new_box();
    let stranger = owned.somebody().from(Peer { address: Some(address(66)), ..FAR });
    let mut wrong = 0;
    for one in 0..40 {
        let name = ["ada", "bob", "eve", "root", "?"][one % 5];
        if stranger.login(name, "some password").await.status == 401 {
            wrong += 1;
        }
    }
    assert_eq!(wrong, 20);
    for _ in 0..30 {
        let answered = stranger.clone().with("authorization", "Bearer twy_x").me().await;
        assert!(matches!(answered.status.as_u16(), 401 | 429));
    }
    assert_eq!(stranger.clone().with("authorization", "Bearer twy_x").me().await.status, 429);
}

#[tokio::test]
async fn each_change_is_in_the_audit_log_and_no_secret_is_anywhere() {
    let owned = new_box();
    let ada = owned.ada().await;
    let otto = owned.user(&ada, "otto", "operator", false).await;
    owned.somebody().login("otto", "some password").await;
    owned.somebody().login("a password typed as name", "x").await;
    ada.send(Method::PATCH, "/api/v1/users/otto", json!({"role": "viewer"})).await;
    let made = ada.send(Method::POST, "/api/v1/tokens", json!({"name": "ci", "role": "viewer"})).await;
    let id = made.json()["token"]["id"].as_str().unwrap().to_owned();
    ada.send(Method::DELETE, &format!("/api/v1/tokens/{id}"), Value::Null).await;
    ada.send(Method::PUT, "/api/v1/me/password", json!({"old": "wrong", "new": "another password"})).await;
    ada.send(Method::DELETE, "/api/v1/users/otto", Value::Null).await;
    let audit = ada.get("/api/v1/audit?limit=100").await;
    let entries: Vec<String> = audit
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| format!("{}: {}", entry["by"], entry["what"]).replace('"', ""))
        .collect();
    for what in [
        "ada: Claim the box",
        "ada: Add a user",
        "otto: Log in",
        "otto: Login refused",
        "?: Login refused",
        "ada: Change a user",
        "ada: Make a token",
        "ada: Remove a token",
        "ada: Change of own password refused",
        "ada: Remove a user",
    ] {
        assert!(entries.iter().any(|entry| entry == what), "{what}: {entries:#?}");
    }
    let mut texts =
        vec![audit.text, ada.get("/api/v1/users").await.text, ada.get("/api/v1/tokens").await.text];
    for file in std::fs::read_dir(owned.folder.path()).unwrap() {
        texts.push(std::fs::read_to_string(file.unwrap().path()).unwrap());
    }
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    let cookies = [&ada, &otto]
        .map(|one| one.headers["cookie"].to_str().unwrap().split_once('=').unwrap().1.to_owned());
    for text in texts {
        for secret in [
            PASSWORD,
            "some password",
            "typed as name",
            "some password",
            &secret[4..],
            &cookies[0],
            &cookies[1],
            &owned.code(),
            &owned.code().to_lowercase().replace('-', ""),
        ] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}

#[tokio::test]
async fn where_nothing_can_be_written_nothing_is_changed() {
    let owned = new_box();
    let ada = owned.ada().await;
    let file = owned.folder.path().join("users.yaml");
    let before = std::fs::read_to_string(&file).unwrap();
    // A folder where the new version would be made, with something in it: nobody, root included, writes there.
    std::fs::create_dir_all(owned.folder.path().join("users.yaml.new/x")).unwrap();
    let new = json!({"name": "eve", "role": "viewer", "password": PASSWORD});
    let answered = ada.send(Method::POST, "/api/v1/users", new).await;
    assert_eq!(answered.status, 500);
    assert!(answered.detail().contains("Nothing was changed"), "{answered:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    assert_eq!(ada.get("/api/v1/users").await.json().as_array().unwrap().len(), 1);
    let audit = ada.get("/api/v1/audit?limit=10").await.text;
    assert!(audit.contains("Add a user: not done"), "{audit}");
}
