//! The server: listens, serves connections, and stops in order.
//!
//! A [`ServerControl`] stops the service. It then accepts no further connections, finishes open requests, and
//! saves all states. A reload of the configuration runs in a separate thread, so that the accepting thread
//! never touches a file. The program decides which signals of the process stop and reload.

use crate::LogCallback;
use crate::config::{ConfigError, ServiceConfig};
use crate::connections::{ClientConnection, ConnectionList, ListedConnection};
use crate::http::{AppState, RequestPeer, router};
use crate::reload::Reloader;
use crate::runtime::error::ServeError;
use crate::runtime::service::Service;
use crate::timed_stream::TimedStream;
use crate::tls::{TlsCertificate, load_certificate};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tower_service::Service as _;

/// Bytes that are buffered of a request: its headers, and the part of its body that is read ahead.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Seconds that threads which wait for files have to end after everything else has ended.
const FILE_THREAD_SECONDS: u64 = 1;

/// The parameters of a service at its start.
#[non_exhaustive]
pub struct ServerSetup {
    /// The configuration.
    pub config: ServiceConfig,
    /// The folder of the store.
    pub folder: PathBuf,
    /// Reads the configuration again.
    pub reload: Arc<dyn Fn() -> Result<ServiceConfig, ConfigError> + Send + Sync>,
    /// The receiver of log lines.
    pub log: LogCallback,
}

impl ServerSetup {
    /// Creates the parameters of a service with its store in `folder`. `reload` reads the configuration
    /// again, and `log` receives log lines.
    pub fn new(
        config: ServiceConfig,
        folder: PathBuf,
        reload: impl Fn() -> Result<ServiceConfig, ConfigError> + Send + Sync + 'static,
        log: LogCallback,
    ) -> Self {
        Self { config, folder, reload: Arc::new(reload), log }
    }
}

/// A handle of a running service. Its requests may come from any thread.
#[derive(Debug, Clone, Default)]
pub struct ServerControl(Arc<ControlRequests>);

#[derive(Debug, Default)]
struct ControlRequests {
    stop: Notify,
    reload: Notify,
}

impl ServerControl {
    /// Stops the service in order.
    pub fn stop(&self) {
        self.0.stop.notify_one();
    }

    /// Reloads the configuration. Requests that arrive before a reload begins count as one.
    pub fn reload(&self) {
        self.0.reload.notify_one();
    }
}

impl std::fmt::Debug for ServerSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSetup")
            .field("config", &self.config)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Serves until a [`ServerControl`] stops the service. Calls `ready` with the URL and the handle once
/// requests are accepted.
///
/// # Errors
/// Fails if the configuration, the store or the address cannot be used, and as `ready` does.
pub fn serve(
    setup: &ServerSetup,
    ready: impl FnOnce(&str, &ServerControl) -> Result<(), ServeError>,
) -> Result<(), ServeError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| ServeError::Io { what, source }
    };
    let loaded = setup.config.tls.as_ref().map(load_certificate).transpose()?;
    let tls_warning = loaded.as_ref().and_then(|loaded| loaded.warning.clone());
    let service = Service::open(setup.config.clone(), &setup.folder, setup.log.clone())?;
    for warning in setup.config.exposed_files(service.context.store.path()).into_iter().chain(tls_warning) {
        (setup.log)(&warning);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io("threads"))?;
    let served = runtime.block_on(async {
        let listen = setup.config.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| ServeError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(io("the address listened on"))?;
        let certificate = loaded.map(TlsCertificate::new);
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let reloader =
            Reloader::start(setup, &service, address, certificate.clone()).map_err(io("threads"))?;
        let (end, ending) = watch::channel(false);
        let app = AppState::new(service.clone(), ending);
        let sources = crate::runtime::sources::start_sources(&service, &setup.config, &setup.log);
        let mut connections = JoinSet::new();
        let gate = ConnectionGate { router: router(app.clone()), app, certificate, list: Arc::default() };
        let control = ServerControl::default();
        ready(&format!("{scheme}://{address}/"), &control)?;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => gate.clone().accept_connection(stream, peer, &mut connections),
                    // The usual cause is the limit on open files. Connections that close make room.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                () = control.0.stop.notified() => break,
                () = control.0.reload.notified() => reloader.request_reload(),
                Some(_) = connections.join_next() => {}
            }
        }
        (setup.log)("ending: finishing open requests");
        drop(listener);
        end.send_replace(true);
        let patience = Duration::from_secs(service.context.config().limits.shutdown_seconds);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, finish).await.is_err() {
            (setup.log)(&format!("{} requests were not finished in time", connections.len()));
            connections.abort_all();
        }
        drop(sources);
        Ok(())
    });
    // A thread that waits for a hanging file must not delay the end.
    runtime.shutdown_timeout(Duration::from_secs(FILE_THREAD_SECONDS));
    service.stop();
    if served.is_ok() {
        (setup.log)("ended");
    }
    served
}

/// The shared state of all connections.
#[derive(Clone)]
struct ConnectionGate {
    router: Router,
    app: AppState,
    certificate: Option<TlsCertificate>,
    list: Arc<ConnectionList>,
}

impl ConnectionGate {
    fn accept_connection(self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let (counters, config) = (&self.app.service.context.counters, self.app.service.context.config());
        let limits = &config.limits;
        let admitted =
            self.list.admit_connection(peer.ip(), limits.connections, limits.connections_per_address);
        let Some((listed, cut)) = admitted else {
            counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            // A TLS handshake would be needed to send a reply, so such clients get none.
            if self.certificate.is_none() && connections.len() < 2 * limits.connections {
                connections.spawn(refuse_connection(stream));
            }
            return;
        };
        counters.connections_cut.fetch_add(u64::from(cut), Ordering::Relaxed);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(self.serve_connection(stream, peer, listed));
    }

    async fn serve_connection(self, stream: TcpStream, peer: SocketAddr, listed: ListedConnection) {
        let _ = stream.set_nodelay(true);
        let connection = &listed.connection;
        tokio::select! {
            () = self.negotiate_tls(stream, peer, connection) => {}
            () = connection.wait_for_eviction() => {}
        }
        self.app.service.context.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }

    async fn negotiate_tls(&self, stream: TcpStream, peer: SocketAddr, connection: &Arc<ClientConnection>) {
        let patience = self.app.service.context.config().header_timeout();
        match &self.certificate {
            None => self.serve_http(stream, peer, connection).await,
            Some(certificate) => {
                let shaken = tokio::time::timeout(patience, certificate.tls_acceptor().accept(stream));
                if let Ok(Ok(stream)) = shaken.await {
                    self.serve_http(stream, peer, connection).await;
                }
            }
        }
    }

    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: SocketAddr,
        listed: &Arc<ClientConnection>,
    ) {
        let config = self.app.service.context.config();
        let (router, own) = (self.router.clone(), listed.clone());
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            own.set_waiting_request(false);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(RequestPeer { address: peer.ip(), connection: own.clone() });
            let (mut router, own) = (router.clone(), own.clone());
            async move {
                let response = router.call(request).await?;
                Ok::<_, std::convert::Infallible>(response.map(|body| ReplyBody { body, connection: own }))
            }
        });
        let patience = Duration::from_secs(config.limits.write_seconds);
        let stream = TimedStream::new(stream, listed.clone(), patience);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout())
            .max_buf_size(READ_BUFFER_BYTES)
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

/// The body of a reply. When it is dropped, the server waits for the next request.
struct ReplyBody {
    body: Body,
    connection: Arc<ClientConnection>,
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        self.connection.set_waiting_request(true);
    }
}

impl hyper::body::Body for ReplyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Replies that there are too many connections.
async fn refuse_connection(mut stream: TcpStream) {
    let body = "{\"error\":\"too many connections\",\"expected\":\"the same request again later\"}";
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(text.as_bytes())).await;
    let _ = stream.shutdown().await;
}
