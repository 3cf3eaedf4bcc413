//! The description of the API (OpenAPI 3.1). It is made from the code, checked in, and served as it was checked in: a test of
//! this crate says when it is another one, and the program carries none of what makes it.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::access::routes as people;

use super::{changes, config, console, events, guests, host, images, metrics};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Throughway",
        description = "The admin API of a Throughway box. Whatever goes wrong is answered as RFC 9457 says.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        host::overview, host::devices, host::device, host::networks, host::drift, host::doctor, host::log, host::audit,
        host::healthz, guests::all, guests::one, guests::stats, guests::log, guests::act, console::attach,
        config::read, config::save, config::check, config::plan, config::schema,
        changes::all, changes::one, changes::apply, changes::confirm, changes::rollback,
        images::all, images::upload, images::remove, events::listen, metrics::scrape, serve,
        people::claim, people::login, people::logout, people::me, people::password, people::list_users, people::add_user,
        people::change_user, people::remove_user, people::list_tokens, people::add_token, people::remove_token,
    ),
    components(schemas(crate::wire::Event, crate::control::Verb)),
    modifiers(&Logins),
    security(("session" = []), ("token" = [])),
)]
struct Described;

struct Logins;

impl Modify for Logins {
    fn modify(&self, described: &mut utoipa::openapi::OpenApi) {
        let components = described.components.get_or_insert_default();
        let session = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("__Host-throughway")));
        components.add_security_scheme("session", session);
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
}

/// The description as the code has it, as text.
///
/// # Errors
/// It cannot be written.
pub fn document() -> Result<String, serde_json::Error> {
    let mut described = Described::openapi();
    described.info.version = "1".into();
    let mut text = described.to_pretty_json()?;
    text.push('\n');
    Ok(text)
}

/// This description.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "description", security(()), responses(
    (status = 200, body = serde_json::Value, content_type = "application/json")))]
pub(super) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../../configs/openapi.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/openapi.json");

    /// `OVERWRITE=1 cargo test -p throughway-web description` writes it.
    #[test]
    fn what_is_checked_in_is_what_the_code_has() {
        let now = document().unwrap();
        if std::env::var_os("OVERWRITE").is_some() {
            std::fs::write(CHECKED_IN, &now).unwrap();
        }
        assert!(std::fs::read_to_string(CHECKED_IN).unwrap() == now, "configs/openapi.json is not current");
    }
}
