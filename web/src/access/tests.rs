//! The gate and what is behind it, driven as a browser, a program and an attacker would.

mod gate;
mod people;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::server::Peer;
use crate::testing::Recorded;

const FAR: Peer = Peer { address: Some(address(7)), user: None, secure: true, https: true };
const PASSWORD: &str = "correct horse battery";

const fn address(last: u8) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 4000)
}

/// A box, its folder, and the codes that it has printed.
struct Owned {
    access: Access,
    control: Arc<Recorded>,
    folder: Arc<tempfile::TempDir>,
    printed: Arc<Mutex<Vec<String>>>,
}

/// Somebody at the other end.
#[derive(Clone)]
struct Caller {
    app: Router,
    peer: Peer,
    headers: HeaderMap,
}

/// What he was answered.
#[derive(Debug)]
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or("").to_owned()
    }
}

fn new_box() -> Owned {
    at(Arc::new(tempfile::tempdir().unwrap()), Arc::default())
}

fn at(folder: Arc<tempfile::TempDir>, printed: Arc<Mutex<Vec<String>>>) -> Owned {
    let control = Arc::new(Recorded::default());
    let into = Arc::clone(&printed);
    let settings = Settings {
        folder: folder.path().to_owned(),
        users_file: None,
        hosts: vec!["box.example".into()],
        announce: Box::new(move |code| into.lock().unwrap().push(code.to_owned())),
    };
    let access = Access::open(settings, control.clone()).unwrap();
    Owned { access, control, folder, printed }
}

impl Owned {
    /// The process anew, with the same folder.
    fn again(&self) -> Self {
        at(Arc::clone(&self.folder), Arc::clone(&self.printed))
    }

    fn later(&self, seconds: u64) {
        self.access.0.clock.at.fetch_add(seconds, Ordering::Relaxed);
    }

    fn code(&self) -> String {
        self.printed.lock().unwrap().last().unwrap().clone()
    }

    /// The routes of this room and of the API, and two pages.
    fn app(&self) -> Router {
        let pages = Router::new()
            .route("/page", get(async |login: Login| login.actor.name))
            .route("/page", post(async |form: Form<Vec<(String, String)>>| format!("{:?}", form.data)))
            .route("/forgets", post(async |login: Login| login.actor.name));
        self.access.guard(pages.merge(routes()).merge(crate::api::routes(self.control.clone())))
    }

    fn somebody(&self) -> Caller {
        Caller { app: self.app(), peer: FAR, headers: HeaderMap::new() }.with("host", "box.example")
    }

    /// The first administrator.
    async fn ada(&self) -> Caller {
        let body = json!({"code": self.code(), "name": "ada", "password": PASSWORD});
        let answered = self.somebody().send(Method::POST, "/api/v1/claim", body).await;
        assert_eq!(answered.status, 200, "{answered:?}");
        self.somebody().keeps(&answered)
    }

    /// Another user, who is added by her.
    async fn user(&self, ada: &Caller, name: &str, role: &str, assigns: bool) -> Caller {
        let new = json!({"name": name, "role": role, "assign-devices": assigns, "password": PASSWORD});
        let added = ada.send(Method::POST, "/api/v1/users", new).await;
        assert_eq!(added.status, 201, "{added:?}");
        self.login(name).await
    }

    async fn login(&self, name: &str) -> Caller {
        let answered = self.somebody().login(name, PASSWORD).await;
        assert_eq!(answered.status, 200, "{answered:?}");
        self.somebody().keeps(&answered)
    }
}

impl Caller {
    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    fn from(mut self, peer: Peer) -> Self {
        self.peer = peer;
        self
    }

    /// The cookie that came with an answer, and the CSRF token in it.
    fn keeps(self, answered: &Answered) -> Self {
        let cookie = answered.headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap();
        let csrf = answered.json()["csrf"].as_str().unwrap().to_owned();
        self.with(COOKIE.as_str(), cookie).with("x-csrf-token", &csrf)
    }

    async fn ask(&self, request: Request<Body>) -> Answered {
        let mut request = request;
        for (name, value) in &self.headers {
            request.headers_mut().entry(name).or_insert(value.clone());
        }
        request.extensions_mut().insert(self.peer);
        let answer = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let text = String::from_utf8(to_bytes(body, 1 << 22).await.unwrap().into()).unwrap();
        Answered { status: parts.status, headers: parts.headers, text }
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Answered {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        self.ask(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn form(&self, path: &str, body: &str) -> Answered {
        let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.ask(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn login(&self, name: &str, password: &str) -> Answered {
        self.send(Method::POST, "/api/v1/login", json!({"name": name, "password": password})).await
    }

    async fn me(&self) -> Answered {
        self.get("/api/v1/me").await
    }
}
