//! What every request goes through before a handler sees it, and every answer before it goes out.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{self, AUTHORIZATION, COOKIE, HOST, HeaderName, ORIGIN, UPGRADE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use super::hosts::authority;
use super::secret;
use super::visitor::{Known, Login, Refusal, Via, harmless};
use super::{Access, cookie};
use crate::control::Problem;
use crate::server::Peer;

/// The header that says that a script of ours has sent a request.
pub const CSRF: HeaderName = HeaderName::from_static("x-csrf-token");

/// The header of what a page asks for by itself, again and again: that nobody sits before it is not hidden by that.
const LIVE: HeaderName = HeaderName::from_static("x-live");

/// What a browser may do with our pages: run and load what comes from here, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

impl Access {
    /// Puts the gate before all that a router has by now.
    ///
    /// Requests must have a [`Peer`] in their extensions: without one none is answered.
    pub fn guard(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.clone(), gate))
    }
}

async fn gate(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let mut answer = match admit(&access, &request) {
        Ok(known) => {
            request.extensions_mut().insert(known);
            next.run(request).await
        }
        Err(problem) => Refusal::new(request.uri(), problem).into_response(),
    };
    protect(answer.headers_mut());
    answer
}

/// Who it is, where it is somebody who may ask at all.
fn admit(access: &Access, request: &Request) -> Result<Known, Problem> {
    let headers = request.headers();
    let peer = *request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Problem::fault("The server did not say where this request comes from"))?;
    // No browser comes by the local socket.
    if peer.address.is_some() {
        let host = host(request)?;
        access.hosts().check(&host)?;
        // A connection that is made into another protocol does as much as any change, and no CSRF token comes with it.
        if !harmless(request.method()) || headers.contains_key(UPGRADE) {
            same_origin(headers, &host, peer.https)?;
        }
    }
    let login = who(access, peer, headers);
    let meant = match &login {
        Ok(Some(Login { via: Via::Session(_), csrf, .. })) => match headers.get(&CSRF) {
            Some(said) => secret::same(said.to_str().unwrap_or(""), csrf),
            None => false,
        },
        _ => true,
    };
    Ok(Known { access: access.clone(), peer, uri: request.uri().clone(), login, meant })
}

/// A token counts before a session, and a wrong one is not made good by a right session.
fn who(access: &Access, peer: Peer, headers: &HeaderMap) -> Result<Option<Login>, Problem> {
    if let Some(said) = headers.get(AUTHORIZATION) {
        let token = said.to_str().ok().and_then(bearer).ok_or_else(|| {
            Problem::unknown(
                "The header Authorization is to be `Bearer` and a token, such as `Bearer twy_...`",
            )
        })?;
        return access.by_token(peer, token).map(Some);
    }
    if peer.address.is_none() {
        return access.by_socket(peer.user.map(|(uid, _)| uid)).map(Some);
    }
    match headers.get_all(COOKIE).iter().find_map(|line| cookie::find(line.to_str().ok()?, peer)) {
        Some(secret) => access.by_session(peer, secret, !headers.contains_key(&LIVE)),
        None => Ok(None),
    }
}

fn bearer(said: &str) -> Option<&str> {
    let (scheme, token) = said.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What the request says it was sent to: HTTP/2 has it in the address, HTTP/1.1 in a header of which there is one.
fn host(request: &Request) -> Result<String, Problem> {
    let mut said = request.headers().get_all(HOST).iter();
    let (first, more) = (said.next(), said.next());
    match (first, more, request.uri().authority()) {
        (Some(host), None, None) => {
            let host = host.to_str().map_err(|_| Problem::malformed("The header Host is no text"))?;
            Ok(host.to_ascii_lowercase())
        }
        (None, None, Some(host)) => Ok(host.as_str().to_ascii_lowercase()),
        (Some(host), None, Some(way)) if host.as_bytes().eq_ignore_ascii_case(way.as_str().as_bytes()) => {
            Ok(way.as_str().to_ascii_lowercase())
        }
        _ => Err(Problem::malformed("A request has the header Host once, and it says what its address says")),
    }
}

/// Whether a page of ours sent it, as far as a browser says so; who is no browser says nothing.
fn same_origin(headers: &HeaderMap, host: &str, tls: bool) -> Result<(), Problem> {
    let foreign = || {
        Problem::forbidden(
            "A page of another site sent this. Where a proxy stands before this box, it has to pass the header Host on \
             as it is",
        )
    };
    if let Some(site) = headers.get("sec-fetch-site")
        && !matches!(site.as_bytes(), b"same-origin" | b"none")
    {
        return Err(foreign());
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().map_err(|_| foreign())?.to_ascii_lowercase();
    let (scheme, from) = origin.split_once("://").ok_or_else(foreign)?;
    // Plain HTTP is for loopback, where a proxy may add TLS.
    let port = match scheme {
        "https" => 443,
        "http" if !tls => 80,
        _ => return Err(foreign()),
    };
    match (authority(from, port), authority(host, port)) {
        (Some(from), Some(host)) if from == host => Ok(()),
        _ => Err(foreign()),
    }
}

/// Says to browsers what they may do with an answer.
fn protect(headers: &mut HeaderMap) {
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Assets say otherwise; all else may be about somebody.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
