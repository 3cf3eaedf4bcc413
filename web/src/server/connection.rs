//! One connection: requests, each with who is there, and none that takes too long to be asked.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service as _;

use super::listen::Peer;
use super::places::Place;
use super::stall::Stalling;

/// How long the head of a request may take, and how long a connection may be idle between two.
const HEAD: Duration = Duration::from_secs(15);
/// Bytes of a head.
const LONGEST_HEAD: usize = 32 << 10;

/// Serves it to its end.
pub(super) async fn serve_one<S>(stream: S, peer: Peer, app: Router, place: Arc<Place>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(Stalling::new(stream, Arc::clone(&place)));
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = place.busy();
        let answer = answer(app.clone(), peer, request);
        async move {
            let answer = answer.await;
            drop(busy);
            answer
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(stream, service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("A connection of {peer:?}: {error}");
    }
}

async fn answer(mut app: Router, peer: Peer, request: Request<Incoming>) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(peer);
    app.call(request).await
}
