//! The description of the API (OpenAPI 3.1). It is made from the code, checked in, and served as it was checked in: a test of
//! this crate says when it is another one, and the program carries none of what makes it.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::access::routes as people;
use crate::control::Problem;

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
        // As paths are, and so that no two are the same: `get-guests-name-stats`.
        for (path, item) in &mut described.paths.paths {
            let path = path.trim_start_matches("/api/v1/").replace(['{', '}'], "");
            let path = path.trim_matches('/').replace(['/', '.'], "-");
            for (method, operation) in [
                ("get", &mut item.get),
                ("put", &mut item.put),
                ("post", &mut item.post),
                ("patch", &mut item.patch),
                ("delete", &mut item.delete),
            ] {
                if let Some(operation) = operation {
                    operation.operation_id = Some(format!("{method}-{path}"));
                }
            }
        }
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
    (status = 200, body = serde_json::Value, content_type = "application/json"),
    (status = "4XX", body = Problem, content_type = "application/problem+json", description = "By a name that this box has not, or from another site")))]
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
