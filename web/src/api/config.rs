//! The file: reading, writing where nobody else has, what is wrong with a text, what it would change.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::answer::{By, Json, Text};
use super::host::Answered;
use crate::control::{Problem, Shared};
use crate::wire::{Checked, Config, Planned};

/// The file as it is on disk, with the tag of this version (`ETag`).
#[utoipa::path(get, path = "/api/v1/config", tag = "config",
    params(("If-None-Match" = Option<String>, Header, description = "A tag: only another version is wanted")),
    responses((status = 200, body = Config, headers(("ETag" = String, description = "Its tag"))),
    (status = 304, description = "It is that of the tag"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn read(
    State(control): State<Shared>,
    By(by): By,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let config = control.config(&by).await?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|tag| unquoted(tag) == Some(&config.tag))) {
        return Ok((axum::http::StatusCode::NOT_MODIFIED, tagged(&config)).into_response());
    }
    Ok(whole(config))
}

/// Writes the file, where it is still the one with the tag of `If-Match`. Nothing is applied.
#[utoipa::path(put, path = "/api/v1/config", tag = "config",
    params(("If-Match" = String, Header, description = "The tag of the version that was edited")),
    request_body(content = String, content_type = "application/yaml"),
    responses((status = 200, body = Config, headers(("ETag" = String, description = "Its tag"))),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Somebody else changed it meanwhile; nothing was written"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "What is wrong with it, by line; nothing was written"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = 507, body = Problem, content_type = "application/problem+json", description = "The disk is full; the file is as before"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn save(
    State(control): State<Shared>,
    By(by): By,
    headers: HeaderMap,
    Text(text): Text,
) -> Result<Response, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else {
        return Err(Problem::tag_wanted(
            "Say by If-Match which version was edited: the tag that GET answered",
        ));
    };
    let tag = tag.to_str().ok().and_then(unquoted).filter(|tag| *tag != "*");
    let tag = tag.ok_or_else(|| Problem::malformed("If-Match is one tag in quotes, as GET answered it"))?;
    control.save(&by, text, tag.to_owned()).await.map(whole)
}

/// What is wrong with a text.
#[utoipa::path(post, path = "/api/v1/config/check", tag = "config",
    request_body(content = String, content_type = "application/yaml"),
    responses((status = 200, body = Checked), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn check(State(control): State<Shared>, By(by): By, Text(text): Text) -> Answered<Checked> {
    control.check(&by, text).await.map(Json)
}

/// What would have to be done so that the host is as a text says.
#[utoipa::path(post, path = "/api/v1/config/plan", tag = "config",
    request_body(content = String, content_type = "application/yaml"),
    responses((status = 200, body = Planned),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "It cannot be done: why, by line"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn plan(State(control): State<Shared>, By(by): By, Text(text): Text) -> Answered<Planned> {
    control.plan(&by, text).await.map(Json)
}

/// The JSON schema of the file.
#[utoipa::path(get, path = "/api/v1/config/schema", tag = "config", responses(
    (status = 200, body = serde_json::Value, content_type = "application/schema+json"),
    (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn schema(By(_): By) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/schema+json")],
        include_str!("../../../configs/appliance.schema.json"),
    )
}

fn tagged(config: &Config) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", config.tag)) {
        headers.insert(header::ETAG, tag);
    }
    headers
}

fn whole(config: Config) -> Response {
    (tagged(&config), Json(config)).into_response()
}

/// A strong tag, or a weak one, without its quotes.
fn unquoted(tag: &str) -> Option<&str> {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_in_quotes() {
        assert_eq!(unquoted("\"abc\""), Some("abc"));
        assert_eq!(unquoted(" W/\"abc\" "), Some("abc"));
        for none in ["abc", "\"abc", "", "\"", "*"] {
            assert_eq!(unquoted(none), None, "{none}");
        }
    }
}
