//! A guest's console over a WebSocket: binary messages both ways, as they come.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{interval, timeout};
use utoipa::IntoParams;

use super::answer::{Asked, At, By};
use crate::access::Until;
use crate::control::{Console, Problem, Shared};

/// What is typed at once.
const LONGEST: usize = 64 << 10;
/// How often is asked whether the other end is still there.
const ALIVE: Duration = Duration::from_secs(30);
/// How long the other end, or the guest, may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to be attached.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// With the keyboard, which one has at a time.
    #[serde(default)]
    #[param(required = false)]
    write: bool,
}

/// Attaches to a guest's console by a WebSocket: what it said of late, then what it says, in binary messages; what is sent is
/// typed where `write` asks for the keyboard.
#[utoipa::path(get, path = "/api/v1/guests/{name}/console", tag = "guests",
    params(("name" = String, Path, description = "Its name"), How),
    responses((status = 101, description = "A WebSocket from here on"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "It does not run, or somebody else has its keyboard"),
    (status = 426, body = Problem, content_type = "application/problem+json", description = "This is no WebSocket"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn attach(
    State(control): State<Shared>,
    By(by): By,
    Until(ended): Until,
    At(name): At<String>,
    Asked(how): Asked<How>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|error| Problem::upgrade(format!("This is a WebSocket: {error}")))?;
    let console = control.console(&by, &name, how.write).await?;
    let writes = how.write;
    let upgrade = upgrade.max_message_size(LONGEST).max_frame_size(LONGEST);
    Ok(upgrade.on_upgrade(move |socket| pump(socket, console, writes, ended)))
}

async fn pump(
    mut socket: WebSocket,
    mut console: Box<dyn Console>,
    writes: bool,
    ended: BoxFuture<'static, ()>,
) {
    let why = tokio::select! {
        why = exchange(&mut socket, &mut *console, writes) => why,
        () = ended => "the login is over",
    };
    let close = CloseFrame { code: 1000, reason: why.into() };
    let _ = timeout(PATIENCE, socket.send(Message::Close(Some(close)))).await;
}

/// Why it ended.
async fn exchange(socket: &mut WebSocket, console: &mut dyn Console, writes: bool) -> &'static str {
    let mut bytes = vec![0; 8 << 10];
    let mut alive = interval(ALIVE);
    let mut heard = true;
    alive.tick().await;
    loop {
        tokio::select! {
            read = console.read(&mut bytes) => {
                let Ok(count @ 1..) = read else { return "the console is over" };
                let said = Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default());
                match timeout(PATIENCE, socket.send(Message::Binary(said))).await {
                    Ok(Ok(())) => {}
                    _ => return "gone",
                }
            }
            message = socket.recv() => {
                heard = true;
                let typed: &[u8] = match &message {
                    Some(Ok(Message::Binary(typed))) => typed,
                    Some(Ok(Message::Text(typed))) => typed.as_bytes(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return "bye",
                };
                if !writes {
                    continue;
                }
                match timeout(PATIENCE, console.write_all(typed)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return "the console is over",
                    Err(_) => return "the guest takes nothing of what is typed",
                }
            }
            _ = alive.tick() => {
                if !std::mem::take(&mut heard) {
                    return "gone";
                }
                if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                    return "gone";
                }
            }
        }
    }
}
