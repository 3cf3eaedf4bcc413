//! Why not: RFC 9457 (`application/problem+json`).

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::wire::Diagnostic;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{title}: {detail}")]
pub struct Problem {
    /// HTTP's status code.
    pub status: u16,
    /// What kind of problem it is, in a few words that do not change.
    pub title: String,
    /// This one: what was to be done, why it was not, what to do. For a person.
    pub detail: String,
    /// What is wrong with the file, where it is about one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// After how many seconds it is worth trying again, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// One of HTTP's status codes with its words.
    fn new(status: u16, title: &str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title: title.to_owned(),
            detail: detail.into(),
            diagnostics: Vec::new(),
            retry_after: None,
        }
    }

    /// 400: the request itself is wrong.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(400, "Malformed request", detail)
    }

    /// 401: who is it?
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self::new(401, "Not logged in", detail)
    }

    /// 403: he may not.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(403, "Not allowed", detail)
    }

    /// 404: it is not there.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, "Not found", detail)
    }

    /// 405: not by this method.
    pub fn method(detail: impl Into<String>) -> Self {
        Self::new(405, "Method not allowed", detail)
    }

    /// 408: it did not come.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(408, "Request timeout", detail)
    }

    /// 409: not in this state.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(409, "Conflict", detail)
    }

    /// 412: somebody else changed it meanwhile.
    pub fn stale(detail: impl Into<String>) -> Self {
        Self::new(412, "Changed meanwhile", detail)
    }

    /// 411: how long is it?
    pub fn length_wanted(detail: impl Into<String>) -> Self {
        Self::new(411, "Length required", detail)
    }

    /// 413: it is too long.
    pub fn too_long(detail: impl Into<String>) -> Self {
        Self::new(413, "Too long", detail)
    }

    /// 415: it is of another kind.
    pub fn kind(detail: impl Into<String>) -> Self {
        Self::new(415, "Unsupported media type", detail)
    }

    /// 426: another protocol is wanted.
    pub fn upgrade(detail: impl Into<String>) -> Self {
        Self::new(426, "Upgrade required", detail)
    }

    /// 428: he does not say which one he has seen.
    pub fn tag_wanted(detail: impl Into<String>) -> Self {
        Self::new(428, "Precondition required", detail)
    }

    /// 421: it was meant for another host.
    pub fn misdirected(detail: impl Into<String>) -> Self {
        Self::new(421, "Another host", detail)
    }

    /// 429: he tried too often, and is to wait for so many seconds.
    pub fn too_often(detail: impl Into<String>, wait: u64) -> Self {
        Self { retry_after: Some(wait), ..Self::new(429, "Too often", detail) }
    }

    /// 422: what the file says cannot be done.
    pub fn refused(detail: impl Into<String>, diagnostics: Vec<Diagnostic>) -> Self {
        Self { diagnostics, ..Self::new(422, "Refused", detail) }
    }

    /// 507: there is no room.
    pub fn no_room(detail: impl Into<String>) -> Self {
        Self::new(507, "No room", detail)
    }

    /// 500: a fault of the host or of Throughway.
    pub fn fault(detail: impl Into<String>) -> Self {
        Self::new(500, "Fault", detail)
    }

    /// 503: the daemon is not there, or not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(503, "Not available", detail)
    }
}

/// As JSON. The problem itself is in the answer's extensions too, for whoever makes a page of it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A type that is made of texts and numbers always has a JSON.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut answer = (status, body).into_response();
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"throughway\""));
        }
        answer.extensions_mut().insert(self);
        answer
    }
}
