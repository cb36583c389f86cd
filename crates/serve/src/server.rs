//! The process: listens, serves connections, obeys signals, ends in order.
//!
//! SIGTERM and SIGINT end it: no further connections, open requests are finished, states saved. SIGHUP reads the
//! configuration again. Connections are limited in number, their headers and TLS handshakes in time.

use super::Log;
use super::api::{App, Peer, router};
use super::config::{Config, ConfigError, Tls};
use super::service::{ServeError, Service};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower_service::Service as _;

/// What a service starts with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Folder of the store.
    pub folder: PathBuf,
    /// Reads the configuration again.
    pub reload: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// Where log lines go.
    pub log: Log,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("config", &self.config)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Serves until a signal ends it. `ready` is told the URL once requests are taken.
///
/// # Errors
/// When the configuration, the store or the address cannot be used.
pub fn serve(setup: &Setup, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| ServeError::Io { what, source }
    };
    let acceptor = setup.config.tls.as_ref().map(acceptor).transpose()?;
    let service = Service::open(setup.config.clone(), &setup.folder, setup.log.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io("threads"))?;
    let served = runtime.block_on(async {
        let listen = setup.config.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| ServeError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(io("the address listened on"))?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let mut ends = (
            signal(SignalKind::terminate()).map_err(io("signals"))?,
            signal(SignalKind::interrupt()).map_err(io("signals"))?,
        );
        let mut hangup = signal(SignalKind::hangup()).map_err(io("signals"))?;
        let (end, ending) = watch::channel(false);
        let streams = Arc::new(Semaphore::new(setup.config.limits.streams));
        let app = App { service: service.clone(), streams, ending };
        let sources = super::sources::start(&service, &setup.config, &setup.log);
        let mut connections = JoinSet::new();
        let gate = Gate {
            router: router(app.clone()),
            app,
            acceptor,
            free: Arc::new(Semaphore::new(setup.config.limits.connections)),
        };
        ready(&format!("{scheme}://{address}/"));
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => gate.clone().admit(stream, peer, &mut connections),
                    // No more files to be had, mostly: those that close make room.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                _ = ends.0.recv() => break,
                _ = ends.1.recv() => break,
                _ = hangup.recv() => reload(&service, setup).await,
                Some(_) = connections.join_next() => {}
            }
        }
        (setup.log)("ending: finishing open requests");
        drop(listener);
        end.send_replace(true);
        let patience = Duration::from_secs(service.hub.config().limits.shutdown_seconds);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, finish).await.is_err() {
            (setup.log)(&format!("{} requests were not finished in time", connections.len()));
            connections.abort_all();
        }
        drop(sources);
        Ok(())
    });
    service.stop();
    if served.is_ok() {
        (setup.log)("ended");
    }
    served
}

async fn reload(service: &Arc<Service>, setup: &Setup) {
    let reloaded = (setup.reload)().map_err(ServeError::from);
    let service = service.clone();
    let done = match reloaded {
        Ok(config) => tokio::task::spawn_blocking(move || service.reload(config)).await,
        Err(error) => Ok(Err(error)),
    };
    let text = match done {
        Ok(Ok(fixed)) if fixed.is_empty() => "configuration read again".to_owned(),
        Ok(Ok(fixed)) => format!("configuration read again; for {} start anew", fixed.join(", ")),
        Ok(Err(error)) => format!("configuration kept as it was: {error}"),
        Err(error) => format!("configuration kept as it was: {error}"),
    };
    (setup.log)(&text);
}

/// What every connection needs.
#[derive(Clone)]
struct Gate {
    router: Router,
    app: App,
    acceptor: Option<TlsAcceptor>,
    free: Arc<Semaphore>,
}

impl Gate {
    fn admit(self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let counters = &self.app.service.hub.counters;
        let Ok(permit) = self.free.clone().try_acquire_owned() else {
            counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            // By TLS it would take a handshake to say so.
            if self.acceptor.is_none()
                && connections.len() < 2 * self.app.service.hub.config().limits.connections
            {
                connections.spawn(refuse(stream));
            }
            return;
        };
        counters.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(self.serve(stream, peer, permit));
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr, _permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let patience = self.app.service.hub.config().header_timeout();
        match &self.acceptor {
            None => self.speak(stream, peer, patience).await,
            Some(acceptor) => {
                if let Ok(Ok(stream)) = tokio::time::timeout(patience, acceptor.accept(stream)).await {
                    self.speak(stream, peer, patience).await;
                }
            }
        }
        self.app.service.hub.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: SocketAddr,
        patience: Duration,
    ) {
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer.ip()));
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut ending = self.app.ending.clone();
        let done = tokio::select! {
            done = connection.as_mut() => Some(done),
            _ = ending.wait_for(|ending| *ending) => None,
        };
        if done.is_none() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Says that there are too many connections.
async fn refuse(mut stream: TcpStream) {
    let body = "{\"error\":\"too many connections\",\"expected\":\"the same request again later\"}";
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(text.as_bytes())).await;
    let _ = stream.shutdown().await;
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let value = |key: &str, reason: String| ConfigError::Value { key: format!("tls.{key}"), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|error| value("cert", format!("{}: {error}: expected PEM", tls.cert.display())))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| value("key", format!("{}: {error}: expected PEM", tls.key.display())))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| value("cert", error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
