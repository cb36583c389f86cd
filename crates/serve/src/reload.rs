//! The reload of all files after SIGHUP, in a separate thread.
//!
//! A reload is one transaction. It reads configuration, tokens, certificate and key, and checks them against
//! the bound address. Then all of them take effect, or none.

use crate::LogCallback;
use crate::config::{ConfigError, ServiceConfig};
use crate::runtime::error::ServeError;
use crate::runtime::service::Service;
use crate::server::ServerSetup;
use crate::tls::{TlsCertificate, load_certificate};
use std::net::SocketAddr;
use std::sync::{Arc, Weak, mpsc};

/// The handle of the thread that reloads files.
pub(super) struct Reloader(mpsc::SyncSender<()>);

struct ReloadTask {
    read: Arc<dyn Fn() -> Result<ServiceConfig, ConfigError> + Send + Sync>,
    /// A weak reference: the thread may wait for a file when the service stops, and must not keep the store
    /// open.
    service: Weak<Service>,
    bound: SocketAddr,
    certificate: Option<TlsCertificate>,
    log: LogCallback,
}

impl Reloader {
    pub(super) fn start(
        setup: &ServerSetup,
        service: &Arc<Service>,
        bound: SocketAddr,
        certificate: Option<TlsCertificate>,
    ) -> std::io::Result<Self> {
        let (send, receive) = mpsc::sync_channel(1);
        let reload = ReloadTask {
            read: setup.reload.clone(),
            service: Arc::downgrade(service),
            bound,
            certificate,
            log: setup.log.clone(),
        };
        std::thread::Builder::new().name("reload".into()).spawn(move || {
            while let Ok(()) = receive.recv() {
                reload.reload_and_log();
            }
        })?;
        Ok(Self(send))
    }

    /// Reloads the files. If a reload is under way, another one follows it.
    pub(super) fn request_reload(&self) {
        let _ = self.0.try_send(());
    }
}

impl ReloadTask {
    fn reload_and_log(&self) {
        let text = match self.try_reload() {
            Ok(fixed) if fixed.is_empty() => "configuration reloaded".to_owned(),
            Ok(fixed) => {
                format!("configuration reloaded; restart the service to change {}", fixed.join(", "))
            }
            Err(error) => format!("configuration not reloaded: {error}"),
        };
        (self.log)(&text);
    }

    fn try_reload(&self) -> Result<Vec<&'static str>, ServeError> {
        let config = (self.read)()?;
        let tokens = config.read_tokens()?;
        let loaded = match (&self.certificate, &config.tls) {
            (Some(_), Some(tls)) => Some(load_certificate(tls)?),
            _ => None,
        };
        let Some(service) = self.service.upgrade() else { return Ok(vec![]) };
        let mut warnings = config.exposed_files(service.context.store.path());
        let fixed = service.apply_config(config, tokens, self.bound)?;
        if let (Some(certificate), Some(loaded)) = (&self.certificate, loaded) {
            warnings.extend(loaded.warning.clone());
            certificate.replace(loaded);
        }
        warnings.iter().for_each(|warning| (self.log)(warning));
        Ok(fixed)
    }
}
