//! Serving: listeners, TLS, connections and their limits.
//!
//! Who connects is known by his address, or on the socket of the host by his user; what he may is [`access`](crate)'s matter.

mod certificate;
mod connection;
mod listen;
mod places;
mod stall;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;

pub use certificate::{Certificate, CertificateError, fingerprint};
pub use listen::{Listener, Peer};
pub use places::Limits;

use listen::accept;
use places::Places;

/// What is served where.
pub struct Serving {
    /// Bound already.
    pub listeners: Vec<Listener>,
    /// The owner's own certificate and key; none for one that is made at the first start.
    pub certificate: Option<Certificate>,
    /// The folder where this process keeps what must outlive it.
    pub state: PathBuf,
    /// Names of the box for a certificate that is made: its host name, its addresses.
    pub names: Vec<String>,
    /// How much is served at once.
    pub limits: Limits,
}

/// Serves until the process ends.
///
/// # Errors
/// There is no certificate, and none can be made.
pub async fn serve(serving: Serving, app: Router) -> Result<(), CertificateError> {
    let Serving { listeners, certificate, state, names, limits } = serving;
    let secure = listeners.iter().any(|listener| matches!(listener, Listener::Https(_)));
    let tls = if secure {
        let certificate = match certificate {
            Some(own) => own,
            None => Certificate::kept(&state.join("tls"), &names)?,
        };
        Some(certificate.acceptor()?)
    } else {
        None
    };
    let places = Arc::new(Places::new(limits));
    let accepting = listeners.into_iter().map(|listener| {
        let (app, tls, places) = (app.clone(), tls.clone(), Arc::clone(&places));
        async move {
            if let Err(error) = accept(listener, tls, app, places).await {
                tracing::error!("A listener of the admin interface failed: {error}");
            }
        }
    });
    futures_util::future::join_all(accepting).await;
    Ok(())
}

/// What a listener says when there are no descriptors left is no reason to give it up.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
