//! A client of a running `evenkeel serve`: JSON over HTTP(S), with its token.

use anyhow::{Context as _, bail};
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Largest size of a reply in bytes. The history of a long run takes some hundred thousand.
const MAX_REPLY_BYTES: u64 = 64 << 20;

/// Connection to the service.
pub(crate) struct ServiceClient {
    agent: Agent,
    pub(crate) base: String,
    token: Option<String>,
    pub(crate) patience: Duration,
}

impl ServiceClient {
    /// Returns a client of the service at `url`. `named` is the user's spelling of it. Without a file, the
    /// token comes from the variable EVENKEEL_TOKEN, if it is set.
    pub(crate) fn new(
        named: &str,
        url: &str,
        token_file: Option<&Path>,
        ca: Option<&Path>,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{named}{url}: expected http://HOST:PORT"))?;
        if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) {
            bail!("{named}{url}: expected http://HOST:PORT or https://HOST:PORT");
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(patience.max(Duration::from_secs(1))));
        // A proxy would see the token, and cannot reach this machine's own addresses.
        if is_loopback(uri.host().unwrap_or_default()) {
            config = config.proxy(None);
        }
        if let Some(file) = ca {
            let pem = std::fs::read(file).with_context(|| format!("--ca {}", file.display()))?;
            let certificate =
                Certificate::from_pem(&pem).with_context(|| format!("--ca {}", file.display()))?;
            let roots = RootCerts::Specific(std::sync::Arc::new(vec![certificate.to_owned()]));
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        let token = match token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("--token-file {}", file.display()))?;
                Some(text.lines().next().unwrap_or_default().trim().to_owned())
            }
            None => std::env::var("EVENKEEL_TOKEN").ok(),
        };
        let base = url.trim_end_matches('/').to_owned();
        Ok(Self { agent: config.build().into(), base, token, patience })
    }

    /// Sends one request. Returns status, reply and the number of seconds after which to retry.
    pub(crate) fn send_request(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<(u16, Value, Option<f64>), ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = match body {
            Some((kind, bytes)) => self.agent.run(request.header("content-type", kind).body(bytes)?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let text = response.body_mut().with_config().limit(MAX_REPLY_BYTES).read_to_string()?;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((response.status().as_u16(), value, retry_after))
    }

    /// Returns the reply to a request without a body.
    pub(crate) fn request_json(&self, method: &str, path: &str) -> anyhow::Result<Value> {
        let (status, value, _) =
            self.send_request(method, path, None).with_context(|| format!("{}{path}", self.base))?;
        let hint = if status == 401 { " (--token-file FILE, or the variable EVENKEEL_TOKEN)" } else { "" };
        if status == 200 {
            Ok(value)
        } else {
            bail!("{}{path}: {}{hint}", self.base, error_text(status, &value))
        }
    }

    /// Returns the document at a path.
    pub(crate) fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        self.request_json("GET", path)
    }
}

/// Returns whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Returns the message of a reply that is no success.
pub(crate) fn error_text(status: u16, value: &Value) -> String {
    match (value["error"].as_str(), value["expected"].as_str()) {
        (Some(error), Some(expected)) => format!("{error} ({status}), expected {expected}"),
        _ => format!("status {status}: {value}"),
    }
}
