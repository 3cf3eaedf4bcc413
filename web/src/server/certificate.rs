//! The certificate: the owner's own, or one that is made at the first start and kept.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use tokio_rustls::TlsAcceptor;

/// A certificate with those that vouch for it, and its key.
#[derive(Debug)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The owner's own cannot be used.
    #[error("The certificate of the admin interface cannot be used: {0}")]
    Own(String),
    /// One cannot be kept.
    #[error("{doing} {path}: {source}")]
    Kept {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// One cannot be made.
    #[error("Making a certificate for the admin interface: {0}")]
    Making(String),
}

impl Certificate {
    /// Out of the texts of two files (PEM).
    ///
    /// # Errors
    /// They have no certificate, no key, or one that does not fit the other.
    pub fn own(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let own = |error: &dyn std::fmt::Display| CertificateError::Own(error.to_string());
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|error| own(&error))?;
        if chain.is_empty() {
            return Err(CertificateError::Own("its file has no certificate (PEM)".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| own(&format!("its key: {error}")))?;
        let certificate = Self { chain, key };
        certificate.config()?;
        Ok(certificate)
    }

    /// That of this folder; where there is none, or it cannot be used, a new one is made for these names.
    ///
    /// # Errors
    /// It cannot be made or kept.
    pub fn kept(folder: &Path, names: &[String]) -> Result<Self, CertificateError> {
        let (chain, key) = (folder.join("certificate.der"), folder.join("key.der"));
        if let (Ok(chain), Ok(key)) = (fs::read(&chain), fs::read(&key)) {
            let kept = Self { chain: vec![chain.into()], key: PrivatePkcs8KeyDer::from(key).into() };
            match kept.config() {
                Ok(_) => {
                    tracing::info!("The certificate of the admin interface: SHA-256 {}", kept.fingerprint());
                    return Ok(kept);
                }
                Err(error) => tracing::warn!("{error}; another one is made"),
            }
        }
        let made = Self::make(names)?;
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| CertificateError::Kept { doing, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("Making the folder", folder))?;
        // The key first: one without its certificate is made anew.
        keep(&key, made.key.secret_der()).map_err(failed("Writing", &key))?;
        let bytes = made.chain.first().map(AsRef::as_ref).unwrap_or_default();
        keep(&chain, bytes).map_err(failed("Writing", &chain))?;
        tracing::info!(
            "A certificate was made for the admin interface. The browser asks whether it is the right one: SHA-256 {}",
            made.fingerprint()
        );
        Ok(made)
    }

    fn make(names: &[String]) -> Result<Self, CertificateError> {
        let failed = |error: rcgen::Error| CertificateError::Making(error.to_string());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names).map_err(failed)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, names.first().map_or("throughway", String::as_str));
        name.push(DnType::OrganizationName, "Throughway");
        params.distinguished_name = name;
        // The box may have no clock yet: from long ago, and for as long as it may live.
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2049, 12, 31);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&key).map_err(failed)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Self { chain: vec![certificate.der().clone()], key })
    }

    /// `AB:CD:..`, of the first certificate, as browsers show it.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.chain.first().map(AsRef::as_ref).unwrap_or_default())
    }

    fn config(&self) -> Result<ServerConfig, CertificateError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |error: rustls::Error| CertificateError::Own(error.to_string());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(failed)?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(failed)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Sessions are kept by the other end, sealed by a key that lives as long as this process: nothing is kept here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
        config.max_early_data_size = 0;
        Ok(config)
    }

    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, CertificateError> {
        Ok(Arc::new(self.config()?).into())
    }
}

/// SHA-256 as browsers show it.
pub fn fingerprint(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let parts: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    parts.join(":")
}

fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_once_and_kept() {
        let folder = std::env::temp_dir().join(format!("throughway-certificate-{}", std::process::id()));
        let names = ["box".to_owned(), "192.0.2.1".to_owned(), "::1".to_owned()];
        let first = Certificate::kept(&folder, &names).unwrap();
        let second = Certificate::kept(&folder, &names).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        fs::write(folder.join("key.der"), "damaged").unwrap();
        let third = Certificate::kept(&folder, &names).unwrap();
        assert_ne!(first.fingerprint(), third.fingerprint());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_without_a_certificate_are_refused() {
        for (chain, key) in [(&b""[..], &b""[..]), (b"no PEM", b"no PEM")] {
            assert!(matches!(Certificate::own(chain, key), Err(CertificateError::Own(_))));
        }
    }
}
