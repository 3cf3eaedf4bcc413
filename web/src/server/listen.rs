//! Listeners, and who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection::serve_one;
use super::is_passing;
use super::places::Places;

/// How long the first words of TLS may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After which pause is accepted again where there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// Something that listens.
pub enum Listener {
    /// HTTPS, for people.
    Https(TcpListener),
    /// Plain HTTP, which is only ever served on a loopback address.
    Http(TcpListener),
    /// The socket of the host, where who connects is known by his user.
    Local(UnixListener),
}

/// Who is at the other end of a connection; an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// His address, when he came over the network.
    pub address: Option<SocketAddr>,
    /// His user and group, when he came by the socket of the host.
    pub user: Option<(u32, u32)>,
    /// What he says is encrypted, or does not leave the host.
    pub secure: bool,
    /// It is HTTPS: cookies may ask for that.
    pub https: bool,
}

/// Lets in whoever comes, for as long as the listener lives.
pub(super) async fn accept(
    listener: Listener,
    tls: Option<TlsAcceptor>,
    app: Router,
    places: Arc<Places>,
) -> io::Result<()> {
    match listener {
        Listener::Https(listener) => {
            let tls = tls.ok_or_else(|| io::Error::other("HTTPS without a certificate"))?;
            loop {
                let Some((stream, from)) = next(listener.accept().await).await? else { continue };
                let Some(place) = places.take(Some(from.ip())) else { continue };
                let (app, tls) = (app.clone(), tls.clone());
                let peer = Peer { address: Some(plain(from)), user: None, secure: true, https: true };
                place.spawn(|place| async move {
                    let _ = stream.set_nodelay(true);
                    match timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve_one(stream, peer, app, place).await,
                        Ok(Err(error)) => tracing::debug!("TLS with {from}: {error}"),
                        Err(_) => tracing::debug!("TLS with {from}: it took too long"),
                    }
                });
            }
        }
        Listener::Http(listener) => {
            if !listener.local_addr()?.ip().to_canonical().is_loopback() {
                return Err(io::Error::other("plain HTTP is served on loopback addresses only"));
            }
            loop {
                let Some((stream, from)) = next(listener.accept().await).await? else { continue };
                let Some(place) = places.take(Some(from.ip())) else { continue };
                let _ = stream.set_nodelay(true);
                let app = app.clone();
                let peer = Peer { address: Some(plain(from)), user: None, secure: true, https: false };
                place.spawn(|place| serve_one(stream, peer, app, place));
            }
        }
        Listener::Local(listener) => loop {
            let Some((stream, _)) = next(listener.accept().await).await? else { continue };
            let Ok(who) = stream.peer_cred() else { continue };
            let Some(place) = places.take(None) else { continue };
            let app = app.clone();
            let user = Some((who.uid(), who.gid()));
            let peer = Peer { address: None, user, secure: true, https: false };
            place.spawn(|place| serve_one(stream, peer, app, place));
        },
    }
}

/// One that came; none where it is gone again, or where there was no room for it.
async fn next<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    match accepted {
        Ok(one) => Ok(Some(one)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => {
            // No descriptor or no memory: those that are served end, and make room.
            tracing::debug!("Accepting a connection: {error}");
            sleep(PAUSE).await;
            Ok(None)
        }
    }
}

/// An address of IPv4 as such, also where it came by a socket of IPv6.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
