//! What comes through the gate, and how.

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn nobody_sees_anything_before_he_has_logged_in() {
    let owned = new_box();
    let somebody = owned.somebody();
    for path in
        ["/api/v1/me", "/api/v1/users", "/api/v1/config", "/api/v1/guests", "/metrics", "/api/v1/events"]
    {
        let answered = somebody.get(path).await;
        assert_eq!(answered.status, 401, "{path}");
        assert_eq!(answered.headers["www-authenticate"], "Bearer realm=\"throughway\"");
        assert_eq!(answered.headers[CONTENT_TYPE], "application/problem+json");
    }
    let page = somebody.get("/page?x=1").await;
    assert_eq!((page.status.as_u16(), page.headers["location"].to_str().unwrap()), (303, "/claim"));
    owned.ada().await;
    let page = somebody.get("/page?x=1").await;
    assert_eq!(page.headers["location"], "/login?back=%2Fpage%3Fx%3D1");
    assert_eq!(somebody.form("/page", "a=b").await.status, 303);
}

#[tokio::test]
async fn a_form_is_proven_by_its_field_and_a_script_by_its_header() {
    let owned = new_box();
    let ada = owned.ada().await;
    let csrf = ada.headers["x-csrf-token"].to_str().unwrap().to_owned();
    let bare = ada.clone().without("x-csrf-token");
    assert_eq!(bare.get("/page").await.text, "ada");
    for wrong in
        ["a=b", "a=b&csrf=", "a=b&csrf=x", &format!("a=b&csrf={}", &csrf[1..]), &format!("a=b&xcsrf={csrf}")]
    {
        let answered = bare.form("/page", wrong).await;
        assert_eq!(answered.status, 403, "{wrong}");
    }
    assert_eq!(bare.form("/page", &format!("a=b&csrf={csrf}")).await.text, r#"[("a", "b")]"#);
    assert_eq!(bare.form("/page", &format!("csrf={csrf}&csrf=x&a=b")).await.text, r#"[("a", "b")]"#);
    assert_eq!(ada.form("/page", "a=b").await.text, r#"[("a", "b")]"#);
    // Another's, of a session that is as good.
    let other = owned.login("ada").await;
    assert_ne!(other.headers["x-csrf-token"], ada.headers["x-csrf-token"]);
    assert_eq!(
        bare.clone()
            .with("x-csrf-token", other.headers["x-csrf-token"].to_str().unwrap())
            .form("/page", "a=b")
            .await
            .status,
        403
    );
    // A handler that has no form at all is safe as well.
    assert_eq!(bare.form("/forgets", &format!("csrf={csrf}")).await.status, 403);
    assert_eq!(ada.form("/forgets", "").await.text, "ada");
    for (method, path) in [
        (Method::POST, "/api/v1/logout"),
        (Method::POST, "/api/v1/users"),
        (Method::DELETE, "/api/v1/users/ada"),
        (Method::PUT, "/api/v1/config"),
        (Method::POST, "/api/v1/guests/web/stop"),
    ] {
        assert_eq!(bare.send(method, path, json!({})).await.status, 403, "{path}");
    }
    assert_eq!(bare.send(Method::POST, "/page", json!({"csrf": csrf})).await.status, 415);
}

#[tokio::test]
async fn another_name_than_ours_is_sent_away() {
    let owned = new_box();
    let ada = owned.ada().await;
    for good in ["box.example", "BOX.example:8443", "192.0.2.80", "[2001:db8::1]:8443", "localhost"] {
        assert_eq!(ada.clone().with("host", good).me().await.status, 200, "{good}");
    }
    for bad in ["evil.example", "box.example.evil", "192.0.2.80.evil.example", "xn--box.example"] {
        assert_eq!(ada.clone().with("host", bad).me().await.status, 421, "{bad}");
        assert_eq!(ada.clone().with("host", bad).login("ada", PASSWORD).await.status, 421, "{bad}");
    }
    assert_eq!(ada.clone().without("host").me().await.status, 400);
    let twice = Request::get("/api/v1/me").header("host", "box.example").header("host", "evil.example");
    assert_eq!(ada.ask(twice.body(Body::empty()).unwrap()).await.status, 400);
    assert_eq!(ada.get("https://evil.example/api/v1/me").await.status, 400);
    // The local socket has no names.
    let root = ada.clone().without("host").from(Peer {
        address: None,
        user: Some((0, 0)),
        secure: true,
        https: false,
    });
    assert_eq!(root.without("cookie").me().await.json()["name"], "uid 0");
}

#[tokio::test]
async fn pages_of_other_sites_change_nothing() {
    let owned = new_box();
    let ada = owned.ada().await;
    let token = json!({"name": "x", "role": "viewer"});
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "http://box.example"),
        ("origin", "https://box.example:8443"),
        ("origin", "https://box.example.evil"),
        ("origin", "null"),
        ("origin", ""),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "x"),
    ] {
        let foreign = ada.clone().with(name, value);
        assert_eq!(foreign.send(Method::POST, "/api/v1/tokens", token.clone()).await.status, 403, "{value}");
        assert_eq!(foreign.form("/page", "a=b").await.status, 403, "{value}");
        assert_eq!(foreign.login("ada", PASSWORD).await.status, 403, "{value}");
        // What is read is read: a browser shows a page of another origin nothing of it.
        assert_eq!(foreign.me().await.status, 200, "{value}");
        // But not what is to become a WebSocket.
        let socket = foreign.clone().with("upgrade", "websocket").with("connection", "upgrade");
        assert_eq!(socket.get("/api/v1/guests/web/console").await.status, 403, "{value}");
    }
    for (name, value) in [
        ("origin", "https://box.example"),
        ("origin", "https://BOX.example:443"),
        ("sec-fetch-site", "same-origin"),
    ] {
        let own = ada.clone().with(name, value);
        assert_eq!(own.form("/page", "a=b").await.status, 200, "{value}");
    }
    let proxied = Peer { https: false, ..FAR };
    for (origin, status) in
        [("https://box.example", 401), ("http://box.example", 401), ("https://evil.example", 403)]
    {
        let answered = owned.somebody().from(proxied).with("origin", origin).login("ada", "wrong").await;
        assert_eq!(answered.status, status, "{origin}");
    }
}

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let owned = new_box();
    let ada = owned.ada().await;
    for answered in [
        ada.me().await,
        ada.get("/nothing/here").await,
        ada.form("/page", "%").await,
        owned.somebody().get("/page").await,
        owned.somebody().with("host", "evil.example").get("/page").await,
        owned.somebody().get("/api/v1/me").await,
    ] {
        let policy = answered.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answered.headers["x-content-type-options"], "nosniff");
        assert_eq!(answered.headers["x-frame-options"], "DENY");
        assert_eq!(answered.headers["cache-control"], "no-store");
        assert!(!answered.headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn a_route_past_the_gate_and_a_request_from_nowhere_are_refused() {
    let owned = new_box();
    let bare = Router::new().route("/page", get(async |login: Login| login.actor.name));
    let somebody = Caller { app: bare, ..owned.somebody() };
    assert_eq!(somebody.get("/page").await.status, 500);
    let request = Request::get("/api/v1/me").header("host", "box.example").body(Body::empty()).unwrap();
    assert_eq!(owned.app().oneshot(request).await.unwrap().status(), 500);
    for user in [None, Some((1000, 0)), Some((65534, 65534))] {
        let peer = Peer { address: None, user, secure: true, https: false };
        assert_eq!(owned.somebody().from(peer).me().await.status, 403, "{user:?}");
    }
}

#[tokio::test]
async fn the_whole_of_it_fits_together() {
    let owned = new_box();
    let ada = owned.ada().await;
    let whole = Caller { app: crate::app(owned.control.clone(), &owned.access), ..ada.clone() };
    let page = whole.get("/").await;
    assert_eq!((page.status.as_u16(), page.text.starts_with("<!doctype html>")), (200, true), "{page:?}");
    assert_eq!(whole.get("/api/v1/guests").await.status, 200);
    assert_eq!(whole.get("/api/v1/nothing").await.headers[CONTENT_TYPE], "application/problem+json");
    assert_eq!(whole.get("/nothing").await.status, 404);
    let nobody = whole.clone().without("cookie");
    for path in ["/", "/guests", "/nothing"] {
        assert_eq!(nobody.get(path).await.status, 303, "{path}");
    }
    for path in ["/api/v1/nothing", "/api/v1/guests", "/metrics"] {
        let answered = nobody.get(path).await;
        assert!(matches!(answered.status.as_u16(), 401 | 404), "{path}: {answered:?}");
        assert_eq!(answered.headers[CONTENT_TYPE], "application/problem+json");
    }
}

#[tokio::test]
async fn cookies_of_plain_http_are_others_than_those_of_https() {
    let owned = new_box();
    let ada = owned.ada().await;
    let plain = Peer { https: false, ..FAR };
    assert_eq!(ada.clone().from(plain).me().await.status, 401);
    let answered = owned.somebody().from(plain).login("ada", PASSWORD).await;
    let cookie = answered.headers[SET_COOKIE].to_str().unwrap();
    assert!(cookie.starts_with("throughway-plain=") && !cookie.contains("Secure"), "{cookie}");
    let ada = owned.somebody().keeps(&answered);
    assert_eq!(ada.clone().from(plain).me().await.status, 200);
    assert_eq!(ada.me().await.status, 401);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever somebody sends who has no secret, nobody is let in, and nothing panics.
    #[test]
    fn no_bytes_let_anybody_in(
        which in 0_usize..5,
        bytes in proptest::collection::vec(0x20_u8..=0xff, 0..80),
        body in "\\PC{0,60}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let owned = new_box();
            let mut somebody = owned.somebody();
            let name = ["host", "cookie", "authorization", "origin", "x-csrf-token"][which];
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&bytes) {
                somebody.headers.insert(name.parse::<HeaderName>().unwrap(), value);
            }
            for answered in [
                somebody.me().await,
                somebody.form("/page", &body).await,
                somebody.form("/forgets", &body).await,
                somebody.send(Method::POST, "/api/v1/users", Value::String(body.clone())).await,
            ] {
                assert!(
                    matches!(answered.status.as_u16(), 303 | 400 | 401 | 403 | 421 | 429),
                    "{answered:?}"
                );
            }
        });
    }
}
