//! Who asks: what a handler is told of it, and the only ways that it is told.
//!
//! [`Gate`](super::gate) has found out who it is before a handler runs. A handler learns it by one of these extractors, and
//! without them it has no [`Actor`] to ask [`Control`](crate::control::Control) anything with, so that none can forget to look:
//!
//! - [`Login`]: somebody who has logged in, or has a token. For what changes something it also wants the proof that a page
//!   of ours sent it, where a browser could have been made to by another: the header `X-CSRF-Token`.
//! - [`Form`]: the same with a form, of which the field `csrf` is that proof.
//! - [`Visit`]: anybody, for what logs in.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;

use super::secret::{self, Digest};
use super::{Access, limits};
use crate::control::{Actor, Problem, Right};
use crate::server::Peer;

/// As the audit log names where somebody comes from.
pub(super) fn place(peer: Peer) -> String {
    peer.address.map_or_else(|| "local".to_owned(), |address| address.ip().to_canonical().to_string())
}

/// What his tries are counted by.
pub(super) fn neighbourhood(peer: Peer) -> String {
    match (peer.address, peer.user) {
        (Some(address), _) => limits::neighbourhood(address.ip()),
        (None, Some((uid, _))) => format!("uid {uid}"),
        (None, None) => "nowhere".to_owned(),
    }
}

/// How he has shown who he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// By a cookie of his browser's: the session.
    Session(Session),
    /// By a token in the header `Authorization`: its id.
    Token(String),
    /// By the local socket.
    Local,
}

/// Which session it is. It says nothing to whoever reads it in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session(pub(super) Digest);

/// Somebody who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who he is, and what he may do.
    pub actor: Actor,
    /// What each form of a page has as its hidden field `csrf`, and each script's request as `X-CSRF-Token`. Empty where
    /// none is needed.
    pub csrf: String,
    /// How he has shown who he is.
    pub via: Via,
}

impl Login {
    /// Asks for a right, where a handler does something that the appliance does not check.
    ///
    /// # Errors
    /// He has it not.
    pub fn must(&self, right: Right) -> Result<(), Problem> {
        if self.actor.may(right) {
            return Ok(());
        }
        Err(Problem::forbidden(match right {
            Right::View => "You may not see this",
            Right::Operate => "This needs the role operator",
            Right::Administer => "This needs the role admin",
            Right::AssignDevices => "This needs the right to assign devices",
        }))
    }
}

/// What is known of a request's sender; in the request's extensions.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) access: Access,
    pub(super) peer: Peer,
    /// What was asked for, whole: a router in a router sees the rest of it alone.
    pub(super) uri: Uri,
    pub(super) login: Result<Option<Login>, Problem>,
    /// It is proven that he meant it: nothing that a browser adds by itself was needed.
    pub(super) meant: bool,
}

impl Known {
    fn of(parts: &Parts) -> Result<&Self, Refusal> {
        parts.extensions.get::<Self>().ok_or_else(|| {
            tracing::error!("A route is served past the gate: {}", parts.uri.path());
            Refusal::new(&parts.uri, Problem::fault("This route is not guarded"))
        })
    }

    fn login(&self) -> Result<Login, Refusal> {
        match &self.login {
            Ok(Some(login)) => Ok(login.clone()),
            Ok(None) => Err(Refusal::nobody(&self.uri, &self.access)),
            Err(problem) => Err(Refusal::new(&self.uri, problem.clone())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Login {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let known = Known::of(parts)?;
        let login = known.login()?;
        if !known.meant && !harmless(&parts.method) {
            return Err(Refusal::new(&known.uri, unproven()));
        }
        Ok(login)
    }
}

/// Comes back when a login holds no more: for handlers whose answers go on and on.
pub struct Until(pub BoxFuture<'static, ()>);

impl<S: Send + Sync> FromRequestParts<S> for Until {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let access = Access::from_request_parts(parts, state).await?;
        let login = Login::from_request_parts(parts, state).await?;
        Ok(Self(Box::pin(async move { access.ended(&login).await })))
    }
}

/// Anybody: where he comes from, and who he is where that is known. Nothing may be changed on the strength of that.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Where he comes from.
    pub peer: Peer,
    /// Who he is, if he has logged in.
    pub login: Option<Login>,
}

impl<S: Send + Sync> FromRequestParts<S> for Visit {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let known = Known::of(parts)?;
        Ok(Self { peer: known.peer, login: known.login.clone().ok().flatten() })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Known::of(parts).map(|known| known.access.clone())
    }
}

/// A form that somebody has sent who has logged in, from a page of ours.
#[derive(Clone, Debug)]
pub struct Form<T> {
    /// Who he is.
    pub login: Login,
    /// The form's other fields.
    pub data: T,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Form<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let known = Known::of(&parts)?.clone();
        let login = known.login()?;
        let uri = known.uri.clone();
        is_form(&parts, &uri)?;
        let fields = fields(Request::from_parts(parts, body), state, &uri).await?;
        let said = fields.iter().find(|(name, _)| name == "csrf").map_or("", |(_, value)| value);
        if !known.meant && (login.csrf.is_empty() || !secret::same(said, &login.csrf)) {
            return Err(Refusal::new(&uri, unproven()));
        }
        Ok(Self { login, data: typed(fields, &uri)? })
    }
}

/// A form that anybody may send: to log in, to claim the box.
#[derive(Clone, Debug)]
pub struct OpenForm<T> {
    /// Who sends it.
    pub visit: Visit,
    /// Its fields.
    pub data: T,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OpenForm<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let visit = Visit::from_request_parts(&mut parts, state).await?;
        let uri = Known::of(&parts)?.uri.clone();
        is_form(&parts, &uri)?;
        let fields = fields(Request::from_parts(parts, body), state, &uri).await?;
        Ok(Self { visit, data: typed(fields, &uri)? })
    }
}

type Fields = Vec<(String, String)>;

fn is_form(parts: &Parts, uri: &Uri) -> Result<(), Refusal> {
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(());
    }
    Err(Refusal::new(uri, Problem::kind("This takes a form (application/x-www-form-urlencoded)")))
}

async fn fields<S: Send + Sync>(request: Request, state: &S, uri: &Uri) -> Result<Fields, Refusal> {
    let body = axum::body::Bytes::from_request(request, state).await.map_err(|error: BytesRejection| {
        let mut problem = Problem::malformed(format!("The form did not arrive: {error}"));
        problem.status = error.status().as_u16();
        Refusal::new(uri, problem)
    })?;
    serde_urlencoded::from_bytes(&body).map_err(|error| wrong(uri, &error))
}

fn typed<T: DeserializeOwned>(mut fields: Fields, uri: &Uri) -> Result<T, Refusal> {
    fields.retain(|(name, _)| name != "csrf");
    let text = serde_urlencoded::to_string(&fields).map_err(|error| wrong(uri, &error))?;
    serde_urlencoded::from_str(&text).map_err(|error| wrong(uri, &error))
}

fn wrong(uri: &Uri, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(uri, Problem::malformed(format!("The form is wrong: {error}")))
}

/// Methods that change nothing.
pub(super) fn harmless(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn unproven() -> Problem {
    Problem::forbidden(
        "This was not sent by a page of this box: the header X-CSRF-Token (of a form, the field csrf) is missing or old. \
         Load the page again",
    )
}

/// Why a request goes no further: a problem for a program, and a page or another address for a person.
#[derive(Clone, Debug)]
pub struct Refusal {
    problem: Box<Problem>,
    /// For a page: where to go instead.
    instead: Option<String>,
    api: bool,
}

impl Refusal {
    pub(super) fn new(uri: &Uri, problem: Problem) -> Self {
        Self { problem: Box::new(problem), instead: None, api: is_api(uri) }
    }

    fn nobody(uri: &Uri, access: &Access) -> Self {
        let mut refusal = Self::new(
            uri,
            Problem::unknown("Log in first, or send a token in the header `Authorization: Bearer twy_...`"),
        );
        if !refusal.api {
            let way = uri.path_and_query().map_or("/", |way| way.as_str());
            refusal.instead = Some(match access.claimed() {
                Ok(false) => "/claim".to_owned(),
                _ if way == "/" => "/login".to_owned(),
                _ => serde_urlencoded::to_string([("back", way)])
                    .map_or("/login".to_owned(), |query| format!("/login?{query}")),
            });
        }
        refusal
    }

    /// It is no more than a way to the page where one logs in, or claims the box.
    pub fn leads_elsewhere(&self) -> bool {
        self.instead.is_some()
    }

    /// The problem itself.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.instead {
            Some(way) => Redirect::to(&way).into_response(),
            None => self.problem.into_response(),
        }
    }
}

/// Whether programs ask for it, and not a person.
pub(super) fn is_api(uri: &Uri) -> bool {
    let path = uri.path();
    path == "/api" || path.starts_with("/api/") || path == "/metrics" || path == "/healthz"
}
