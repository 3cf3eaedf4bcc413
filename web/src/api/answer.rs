//! What all routes have in common: who asks, what he says, how it is answered.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::{Login, Refusal};
use crate::control::{Actor, Problem};

/// Who asks.
pub struct By(pub Actor);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Login::from_request_parts(parts, state).await.map(|login| Self(login.actor))
    }
}

/// An answer in JSON, which nobody keeps.
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                tracing::error!("Writing an answer: {error}");
                Problem::fault("The answer cannot be written; see the log").into_response()
            }
        }
    }
}

/// The parts of the path.
pub(crate) struct At<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        match read {
            Ok(Path(path)) => Ok(Self(path)),
            // A number that is none names nothing.
            Err(error) => {
                Err(Problem::not_found(format!("There is nothing at this address: {}", error.body_text())))
            }
        }
    }
}

/// What stands after the question mark.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        read.map(|Query(asked)| Self(asked)).map_err(|error| Problem::malformed(error.body_text()))
    }
}

async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|error: BytesRejection| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::too_long(format!("The body is longer than {} bytes", super::LONGEST_BODY))
        }
        _ => Problem::malformed(format!("The body did not come: {}", error.body_text())),
    })
}

/// A body that is JSON, and says so.
pub(crate) struct Said<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Said<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // A form of another site's page cannot say this.
        expect(&request, "application/json")?;
        let bytes = bytes(request, state).await?;
        let read = serde_json::from_slice(&bytes).map(Self);
        read.map_err(|error| Problem::malformed(format!("The body is not what is asked for: {error}")))
    }
}

/// A body that is a file's text.
pub(super) struct Text(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        expect(&request, "application/yaml")?;
        let bytes = bytes(request, state).await?;
        let text = String::from_utf8(bytes.into());
        text.map(Self).map_err(|_| Problem::malformed("The body is not text (UTF-8)"))
    }
}

/// Whether a body is of this kind.
pub(super) fn expect(request: &Request, kind: &str) -> Result<(), Problem> {
    let said = request.headers().get(header::CONTENT_TYPE).and_then(|said| said.to_str().ok());
    let said = said.map(|said| said.split(';').next().unwrap_or(said).trim());
    if said.is_some_and(|said| said.eq_ignore_ascii_case(kind)) {
        return Ok(());
    }
    Err(Problem::kind(format!("The body is to be {kind}, and its Content-Type to say so")))
}
