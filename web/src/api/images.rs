//! Disk images and installers: which there are, bringing one in, taking one away.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::answer::{At, By, Json, expect};
use super::host::Answered;
use crate::control::{Actor, Problem, Shared, Upload};
use crate::wire::Image;

/// How long nothing may come of an image.
const PATIENCE: Duration = Duration::from_secs(60);

/// All images.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", responses(
    (status = 200, body = Vec<Image>), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn all(State(control): State<Shared>, By(by): By) -> Answered<Vec<Image>> {
    control.images(&by).await.map(Json)
}

/// Brings an image in. It is there when all of it has come; an upload that is cut off leaves nothing.
#[utoipa::path(put, path = "/api/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "Its file name"),
        ("Content-Length" = u64, Header, description = "How long it is: it is known before whether there is room")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = Image),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "There is one of this name"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = 507, body = Problem, content_type = "application/problem+json", description = "There is no room for it"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn upload(
    State(control): State<Shared>,
    By(by): By,
    At(name): At<String>,
    request: Request,
) -> Result<Response, Problem> {
    expect(&request, "application/octet-stream")?;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length: u64 = length.and_then(|length| length.parse().ok()).ok_or_else(|| {
        Problem::length_wanted("Say by Content-Length how long the image is, so that there is room for it")
    })?;
    let upload = control.upload(&by, &name, length).await?;
    let guard = GivenUp { control: &control, by: &by, upload: Some(upload.id) };
    let received = receive(request.into_body(), upload, length).await;
    let id = guard.keep();
    match received {
        Ok(()) => {
            let image = control.finish_upload(&by, id).await?;
            Ok((StatusCode::CREATED, Json(image)).into_response())
        }
        Err(problem) => {
            control.give_up_upload(&by, id, problem.detail.clone()).await?;
            Err(problem)
        }
    }
}

/// Gives an upload up whose connection is gone, and with it the task.
struct GivenUp<'a> {
    control: &'a Shared,
    by: &'a Actor,
    upload: Option<u64>,
}

impl GivenUp<'_> {
    fn keep(mut self) -> u64 {
        self.upload.take().unwrap_or_default()
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let Some(upload) = self.upload else { return };
        let (control, by) = (Shared::clone(self.control), self.by.clone());
        tokio::spawn(async move {
            let why = "the connection was cut off".to_owned();
            if let Err(problem) = control.give_up_upload(&by, upload, why).await {
                tracing::debug!("Giving up an upload: {problem}");
            }
        });
    }
}

async fn receive(mut body: Body, upload: Upload, length: u64) -> Result<(), Problem> {
    let mut file = tokio::fs::File::from_std(upload.file);
    let mut come: u64 = 0;
    loop {
        let frame = match timeout(PATIENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(Problem::malformed(format!(
                    "The upload was cut off after {come} of {length} bytes, and nothing of it is kept: {error}"
                )));
            }
            Err(_) => {
                return Err(Problem::timeout(format!(
                    "Nothing came for {} s, after {come} of {length} bytes; nothing of it is kept",
                    PATIENCE.as_secs()
                )));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        come = come.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if come > length {
            return Err(Problem::malformed("More came than Content-Length said"));
        }
        use tokio::io::AsyncWriteExt as _;
        file.write_all(&data).await.map_err(|error| full(&error))?;
    }
    use tokio::io::AsyncWriteExt as _;
    file.flush().await.map_err(|error| full(&error))?;
    if come < length {
        return Err(Problem::malformed(format!(
            "The upload was cut off after {come} of {length} bytes, and nothing of it is kept"
        )));
    }
    Ok(())
}

fn full(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Problem::no_room(format!("There is no room for the image, and nothing of it is kept: {error}"))
        }
        _ => Problem::fault(format!("Writing the image: {error}; nothing of it is kept")),
    }
}

/// Takes an image away that no guest of the file has.
#[utoipa::path(delete, path = "/api/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "Its file name")),
    responses((status = 204, description = "It is gone"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "A guest has it"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn remove(
    State(control): State<Shared>,
    By(by): By,
    At(name): At<String>,
) -> Result<Response, Problem> {
    control.remove_image(&by, name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
