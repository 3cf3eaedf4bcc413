//! By HTTPS, from the network.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::client::{Answer, Served};
use crate::machine::{PATIENCE, wait_until};

pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The certificate that the box made for itself.
pub(crate) fn certificate(served: &Served) -> PathBuf {
    served.appliance.path("state").join("web/tls/certificate.der")
}

/// By TLS, to who has that certificate, and to nobody else.
pub(crate) fn secure(
    served: &Served,
    port: u16,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(fs::read(certificate(served))?)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, connect(port));
    stream.flush()?;
    Ok(stream)
}

pub(crate) fn get(served: &Served, port: u16, path: &str) -> std::io::Result<Answer> {
    asked(secure(served, port)?, "GET", path, port, "", "")
}

/// JSON, with these lines of its head.
pub(crate) fn post(served: &Served, port: u16, path: &str, lines: &str, body: &Value) -> Answer {
    let lines = format!("Content-Type: application/json\r\n{lines}");
    asked(secure(served, port).unwrap(), "POST", path, port, &lines, &body.to_string()).unwrap()
}

fn asked(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    port: u16,
    lines: &str,
    body: &str,
) -> std::io::Result<Answer> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    Ok(Answer::read(stream))
}

/// It answers those who come by the network, and root on the box.
pub(crate) fn is_usable(served: &Served, port: u16) {
    wait_until("it answers over the network", || {
        get(served, port, "/healthz").is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(served.get("/healthz").good().text(), "ok\n");
}
