//! The box: overview, devices, networks, drift, doctor, logs.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Asked, At, By, Json};
use crate::control::{Problem, Shared};
use crate::wire::{AuditEntry, Device, Doctor, Drift, Log, Network, Overview};

/// An answer, or why not.
pub(super) type Answered<T> = Result<Json<T>, Problem>;

/// The box in a few words: guests, devices, drift, what waits to be confirmed.
#[utoipa::path(get, path = "/api/v1/overview", tag = "host", responses(
    (status = 200, body = Overview), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn overview(State(control): State<Shared>, By(by): By) -> Answered<Overview> {
    control.overview(&by).await.map(Json)
}

/// All PCI functions, each with whether a guest can have it and why.
#[utoipa::path(get, path = "/api/v1/devices", tag = "host", responses(
    (status = 200, body = Vec<Device>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn devices(State(control): State<Shared>, By(by): By) -> Answered<Vec<Device>> {
    control.devices(&by).await.map(Json)
}

/// One PCI function.
#[utoipa::path(get, path = "/api/v1/devices/{address}", tag = "host",
    params(("address" = String, Path, description = "`0000:01:00.0`")), responses(
    (status = 200, body = Device), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn device(
    State(control): State<Shared>,
    By(by): By,
    At(address): At<String>,
) -> Answered<Device> {
    let found = control.devices(&by).await?.into_iter().find(|device| device.address == address);
    found.map(Json).ok_or_else(|| Problem::not_found(format!("There is no PCI function {address}")))
}

/// Networks of the host, and who is on them.
#[utoipa::path(get, path = "/api/v1/networks", tag = "host", responses(
    (status = 200, body = Vec<Network>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn networks(State(control): State<Shared>, By(by): By) -> Answered<Vec<Network>> {
    control.networks(&by).await.map(Json)
}

/// Where the host is not as the file that holds says.
#[utoipa::path(get, path = "/api/v1/drift", tag = "host", responses(
    (status = 200, body = Vec<Drift>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn drift(State(control): State<Shared>, By(by): By) -> Answered<Vec<Drift>> {
    control.drift(&by).await.map(Json)
}

/// What the box itself is fit for.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "host", responses(
    (status = 200, body = Doctor), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn doctor(State(control): State<Shared>, By(by): By) -> Answered<Doctor> {
    control.doctor(&by).await.map(Json)
}

/// How much of a log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Lines {
    /// The last so many lines: 200 where it is not said, and 5000 at most.
    #[param(minimum = 1, maximum = 5000)]
    pub(super) lines: Option<u32>,
}

/// As many lines as are asked for, or a problem.
pub(super) fn lines(asked: Option<u32>) -> Result<u32, Problem> {
    match asked.unwrap_or(200) {
        lines @ 1..=5000 => Ok(lines),
        _ => Err(Problem::malformed("`lines` is from 1 to 5000")),
    }
}

/// The end of the daemon's log.
#[utoipa::path(get, path = "/api/v1/log", tag = "host", params(Lines), responses(
    (status = 200, body = Log), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn log(
    State(control): State<Shared>,
    By(by): By,
    Asked(asked): Asked<Lines>,
) -> Answered<Log> {
    control.log(&by, None, false, lines(asked.lines)?).await.map(Json)
}

/// Which part of the audit log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Only entries with a smaller number.
    before: Option<u64>,
    /// At most so many: 100 where it is not said, and 1000 at most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "host", params(Part), responses(
    (status = 200, body = Vec<AuditEntry>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn audit(
    State(control): State<Shared>,
    By(by): By,
    Asked(part): Asked<Part>,
) -> Answered<Vec<AuditEntry>> {
    let limit = match part.limit.unwrap_or(100) {
        limit @ 1..=1000 => limit,
        _ => return Err(Problem::malformed("`limit` is from 1 to 1000")),
    };
    control.audit(&by, part.before, limit).await.map(Json)
}

/// Whether this answers, and the daemon behind it: for who watches the box, without a login.
#[utoipa::path(get, path = "/healthz", tag = "measured", security(()), responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = "4XX", body = Problem, content_type = "application/problem+json", description = "By a name that this box has not, or from another site"),
    (status = 503, body = String, content_type = "text/plain")))]
pub(super) async fn healthz(State(control): State<Shared>) -> impl IntoResponse {
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    if control.is_there() {
        (StatusCode::OK, plain, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, plain, "the daemon does not answer\n")
    }
}
