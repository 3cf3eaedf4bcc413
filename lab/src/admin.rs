//! The box's admin interface as somebody on this machine reaches it: a port of loopback that leads into the box.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Where it listens in the box.
pub const INSIDE: u16 = 8443;
/// How long it may take to answer: the box is emulated, and starts a guest meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);

/// A port of loopback that nobody has.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port")?;
    Ok(listener.local_addr().context("Looking for a free port")?.port())
}

/// Asks it whether it is well, and believes no other certificate than this one (DER).
///
/// # Errors
/// It does not answer, or somebody else does.
pub fn is_well(port: u16, certificate: &[u8]) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).context("Reading the box's certificate")?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("Making a TLS client")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let deadline = Instant::now().checked_add(PATIENCE).context("Computing a deadline")?;
    loop {
        match asked(port, &config) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

fn asked(port: u16, config: &Arc<ClientConfig>) -> Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("Connecting to the box")?;
    stream.set_read_timeout(Some(PATIENCE)).context("Setting a limit of time")?;
    let name = ServerName::try_from("localhost").context("Naming the box")?;
    let connection = ClientConnection::new(Arc::clone(config), name).context("Making a TLS client")?;
    let mut stream = StreamOwned::new(connection, stream);
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n")
        .context("Asking the admin interface")?;
    let mut answer = String::new();
    if let Err(error) = stream.read_to_string(&mut answer) {
        // Who answers in full may hang up without a word of TLS.
        ensure!(!answer.is_empty(), "Reading the admin interface's answer: {error}");
    }
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!("The admin interface answers {:?}", answer.lines().next().unwrap_or_default());
    }
    Ok(())
}
