//! Certificate and key: they are read at the start and on SIGHUP, and used by every handshake.

use crate::config::{ConfigError, TlsFiles};
use crate::files;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The forbidden permission bits of a key file: write for the group, anything for others.
const FORBIDDEN_BITS: u32 = 0o027;
/// The permission bits that cause a warning: read for the group.
const WARNED_BITS: u32 = 0o040;

/// The certificate that handshakes present. It can be replaced.
#[derive(Clone)]
pub(super) struct TlsCertificate(Arc<RwLock<Arc<ServerConfig>>>);

/// A certificate and its key, which match each other.
pub(super) struct LoadedCertificate {
    config: Arc<ServerConfig>,
    /// A warning for the operator.
    pub(super) warning: Option<String>,
}

impl TlsCertificate {
    pub(super) fn new(loaded: LoadedCertificate) -> Self {
        Self(Arc::new(RwLock::new(loaded.config)))
    }

    /// Replaces the certificate for all further handshakes.
    pub(super) fn replace(&self, loaded: LoadedCertificate) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = loaded.config;
    }

    /// Returns the acceptor that performs the handshake of a connection.
    pub(super) fn tls_acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Reads certificate and key.
pub(super) fn load_certificate(tls: &TlsFiles) -> Result<LoadedCertificate, ConfigError> {
    let value = |key: &str, path: &Path, reason: &str| ConfigError::Value {
        key: format!("tls.{key}"),
        reason: format!("{}: {reason}", path.display()),
    };
    let pem = |error: &dyn std::fmt::Display| format!("{error}: expected PEM");
    let cert = files::read_file(&tls.cert).map_err(|error| value("cert", &tls.cert, &error.to_string()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&cert.bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| value("cert", &tls.cert, &pem(&error)))?;
    let key = files::read_file(&tls.key).map_err(|error| value("key", &tls.key, &error.to_string()))?;
    if key.mode & FORBIDDEN_BITS != 0 {
        let reason = format!("mode {:04o}, expected 0600: other users can use the key (chmod 600)", key.mode);
        return Err(value("key", &tls.key, &reason));
    }
    let warning =
        (key.mode & WARNED_BITS != 0).then(|| files::permission_warning("key file", &tls.key, key.mode));
    let key =
        PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| value("key", &tls.key, &pem(&error)))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| value("cert", &tls.cert, &error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(LoadedCertificate { config: Arc::new(config), warning })
}
