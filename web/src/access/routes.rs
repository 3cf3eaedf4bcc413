//! What programs ask about people: `/api/v1/claim`, `login`, `logout`, `me`, `users` and `tokens`.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Access, Login, MadeToken, NewToken, NewUser, Token, User, UserChange, Via, Visit};
use crate::api::{At, Json, Said};
use crate::control::{Problem, Role};

/// The code that was printed, and who is to be administrator.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ClaimForm {
    /// As it was printed; small letters and missing dashes do no harm.
    code: String,
    /// What he will log in with: 1 to 32 small letters, digits, dots, dashes and underlines.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,31}$")]
    name: String,
    /// His password, of 10 characters or more.
    #[schema(format = "password", min_length = 10, max_length = 256)]
    password: String,
}

/// A name and its password.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct LoginForm {
    /// The user's name.
    name: String,
    /// His password.
    #[schema(format = "password")]
    password: String,
}

/// A new password for oneself.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PasswordForm {
    /// The one that holds.
    #[schema(format = "password")]
    old: String,
    /// The one that is to.
    #[schema(format = "password", min_length = 10, max_length = 256)]
    new: String,
}

/// Who one is.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Me {
    name: String,
    role: Role,
    assign_devices: bool,
    /// The token that one has come with.
    token: Option<String>,
    /// What is sent as `X-CSRF-Token` with each request that changes something; of a session alone.
    csrf: Option<String>,
}

impl Me {
    fn of(login: &Login) -> Self {
        Self {
            name: login.actor.name.clone(),
            role: login.actor.role,
            assign_devices: login.actor.assign_devices,
            token: login.actor.token.clone(),
            csrf: matches!(login.via, Via::Session(_)).then(|| login.csrf.clone()),
        }
    }
}

/// The routes. They are to be behind [`Access::guard`].
pub fn routes() -> Router {
    Router::new()
        .route("/api/v1/claim", post(claim))
        .route("/api/v1/login", post(login))
        .route("/api/v1/logout", post(logout))
        .route("/api/v1/me", get(me))
        .route("/api/v1/me/password", put(password))
        .route("/api/v1/users", get(list_users).post(add_user))
        .route("/api/v1/users/{name}", patch(change_user).delete(remove_user))
        .route("/api/v1/tokens", get(list_tokens).post(add_token))
        .route("/api/v1/tokens/{id}", delete(remove_token))
}

/// Claim the box, or get back in, with the code that is printed on its console.
#[utoipa::path(post, path = "/api/v1/claim", tag = "access", request_body = ClaimForm, security(()), responses(
    (status = 200, description = "Claimed, and logged in by the cookie that comes with it", body = Me),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn claim(
    access: Access,
    visit: Visit,
    Said(said): Said<ClaimForm>,
) -> Result<Response, Problem> {
    let (login, cookie) = access.claim(visit.peer, &said.code, &said.name, said.password).await?;
    Ok((cookie, Json(Me::of(&login))).into_response())
}

/// Log in with a password.
#[utoipa::path(post, path = "/api/v1/login", tag = "access", request_body = LoginForm, security(()), responses(
    (status = 200, description = "Logged in by the cookie that comes with it", body = Me),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn login(
    access: Access,
    visit: Visit,
    Said(said): Said<LoginForm>,
) -> Result<Response, Problem> {
    let (login, cookie) = access.login(visit.peer, &said.name, said.password).await?;
    Ok((cookie, Json(Me::of(&login))).into_response())
}

/// Log out.
#[utoipa::path(post, path = "/api/v1/logout", tag = "access", responses(
    (status = 204, description = "Logged out"),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn logout(access: Access, visit: Visit, by: Login) -> Result<Response, Problem> {
    let cookie = access.logout(visit.peer, &by).await?;
    Ok((cookie, StatusCode::NO_CONTENT).into_response())
}

/// Who one is.
#[utoipa::path(get, path = "/api/v1/me", tag = "access", responses(
    (status = 200, description = "It is", body = Me),
    (status = "default", description = "Nobody", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn me(by: Login) -> Json<Me> {
    Json(Me::of(&by))
}

/// Change one's own password. One's other sessions end.
#[utoipa::path(put, path = "/api/v1/me/password", tag = "access", request_body = PasswordForm, responses(
    (status = 200, description = "Changed; the session goes on with the cookie that comes with it", body = Me),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn password(
    access: Access,
    visit: Visit,
    by: Login,
    Said(said): Said<PasswordForm>,
) -> Result<Response, Problem> {
    let (login, cookie) = access.change_password(visit.peer, &by, said.old, said.new).await?;
    Ok((cookie, Json(Me::of(&login))).into_response())
}

/// All users.
#[utoipa::path(get, path = "/api/v1/users", tag = "access", responses(
    (status = 200, description = "All of them", body = Vec<User>),
    (status = "default", description = "Not shown", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_users(access: Access, by: Login) -> Result<Json<Vec<User>>, Problem> {
    access.list_users(&by).map(Json)
}

/// Add a user.
#[utoipa::path(post, path = "/api/v1/users", tag = "access", request_body = NewUser, responses(
    (status = 201, description = "Added", body = User),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn add_user(
    access: Access,
    by: Login,
    Said(new): Said<NewUser>,
) -> Result<(StatusCode, Json<User>), Problem> {
    Ok((StatusCode::CREATED, Json(access.add_user(&by, new).await?)))
}

/// Change a user; what is not said stays.
#[utoipa::path(patch, path = "/api/v1/users/{name}", tag = "access", request_body = UserChange,
    params(("name" = String, Path, description = "His name")), responses(
    (status = 200, description = "Changed", body = User),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn change_user(
    access: Access,
    by: Login,
    At(name): At<String>,
    Said(change): Said<UserChange>,
) -> Result<Json<User>, Problem> {
    access.change_user(&by, &name, change).await.map(Json)
}

/// Remove a user, with his sessions and tokens.
#[utoipa::path(delete, path = "/api/v1/users/{name}", tag = "access",
    params(("name" = String, Path, description = "His name")), responses(
    (status = 204, description = "Removed"),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn remove_user(
    access: Access,
    by: Login,
    At(name): At<String>,
) -> Result<StatusCode, Problem> {
    access.remove_user(&by, &name).await.map(|()| StatusCode::NO_CONTENT)
}

/// One's own tokens; for an administrator, everybody's.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "access", responses(
    (status = 200, description = "They are", body = Vec<Token>),
    (status = "default", description = "Not shown", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_tokens(access: Access, by: Login) -> Json<Vec<Token>> {
    Json(access.list_tokens(&by))
}

/// Make a token of one's own. Its secret is told this once.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "access", request_body = NewToken, responses(
    (status = 201, description = "Made", body = MadeToken),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn add_token(
    access: Access,
    by: Login,
    Said(new): Said<NewToken>,
) -> Result<(StatusCode, Json<MadeToken>), Problem> {
    Ok((StatusCode::CREATED, Json(access.add_token(&by, new).await?)))
}

/// Remove a token: one's own, or as an administrator anybody's.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "access",
    params(("id" = String, Path, description = "Its id")), responses(
    (status = 204, description = "Removed"),
    (status = "default", description = "Not done", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn remove_token(
    access: Access,
    by: Login,
    At(id): At<String>,
) -> Result<StatusCode, Problem> {
    access.remove_token(&by, &id).await.map(|()| StatusCode::NO_CONTENT)
}
