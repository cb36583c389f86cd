//! `evenkeel.toml`: what is served where, to whom, within which limits.
//!
//! In: TOML text, every key optional. Out: a checked [`Config`]. An unknown key is an error that names it, and so is a value
//! that cannot be. docs/serve.md lists all keys.

use super::Phase;
use super::options::{DecideOptions, STATED_PRICE_HORIZON, Shape, SpecError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Where the service listens unless told otherwise.
pub const LISTEN: &str = "127.0.0.1:8787";

/// A configuration that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a key that is unknown or of the wrong type; the message has the line.
    #[error("{path}: {message}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A key holds what it should not.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A model's shape or options cannot be.
    #[error("[{table}] {source}")]
    Spec {
        /// The table.
        table: String,
        /// What is wrong.
        source: SpecError,
    },
}

/// How the service is set up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Folder of the store.
    pub data: Option<PathBuf>,
    /// File with bearer tokens, one per line; `#` begins a comment.
    pub token_file: Option<PathBuf>,
    /// Serve by TLS.
    pub tls: Option<Tls>,
    /// What requests may take.
    pub limits: Limits,
    /// What is remembered.
    pub history: HistoryLimits,
    /// How plans are decided, for all models.
    pub decide: toml::Table,
    /// The models; more can be made by `PUT /v1/models/NAME`.
    pub models: BTreeMap<String, ModelTable>,
    /// Where loads are fetched from.
    pub source: Vec<Source>,
}

/// Certificate and key for TLS, PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// What requests may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest body, in MiB.
    pub body_mib: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Open event streams and waiting plan requests at a time.
    pub streams: usize,
    /// Requests a second from one address, twice as many in a burst; 0: no limit.
    pub requests_per_second: u32,
    /// Seconds until a request's headers must be there.
    pub header_seconds: u64,
    /// Seconds until a request's body must be there.
    pub body_seconds: u64,
    /// Accepted steps that may wait to be looked at; more are refused for the time being (429).
    pub behind_steps: u64,
    /// The same in MiB of counts.
    pub behind_mib: u64,
    /// Models at a time.
    pub models: usize,
    /// Seconds that open requests have to finish when the service ends.
    pub shutdown_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_mib: 64,
            connections: 256,
            streams: 64,
            requests_per_second: 2000,
            header_seconds: 10,
            body_seconds: 30,
            behind_steps: 4096,
            behind_mib: 512,
            models: 64,
            shutdown_seconds: 10,
        }
    }
}

/// What is remembered, besides the steps that planning looks at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryLimits {
    /// Step ids per phase, to tell repeated posts.
    pub ids: usize,
    /// Decisions per phase.
    pub decisions: usize,
    /// Plans per phase.
    pub plans: usize,
    /// Days after which points of the history and decisions are forgotten.
    pub days: u64,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { ids: 65_536, decisions: 1024, plans: 64, days: 30 }
    }
}

/// A model in the file: its shape, and what it decides otherwise than `[decide]` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    /// Ranks.
    pub ranks: usize,
    /// Redundant slots in all.
    #[serde(default)]
    pub redundant: usize,
    /// Nodes.
    #[serde(default = "one")]
    pub nodes: usize,
    /// Expert groups.
    #[serde(default = "one")]
    pub groups: usize,
    /// The model's name, for what an expert weighs.
    pub model: Option<String>,
    /// The GPU's name.
    pub gpu: Option<String>,
    /// What a rank receives.
    pub link_gbps: Option<u64>,
    /// Keys of `[decide]` that are otherwise here.
    #[serde(default)]
    pub decide: toml::Table,
}

fn one() -> usize {
    1
}

impl ModelTable {
    /// The shape.
    pub fn shape(&self) -> Shape {
        Shape {
            ranks: self.ranks,
            redundant: self.redundant,
            nodes: self.nodes,
            groups: self.groups,
            model: self.model.clone(),
            gpu: self.gpu.clone(),
            link_gbps: self.link_gbps,
        }
    }
}

/// Where loads are fetched from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The model that is fed.
    pub model: String,
    /// The phase that is fed.
    #[serde(default)]
    pub phase: Phase,
    /// A file that grows (CSV or vLLM JSONL), or a folder into which dumps are written.
    pub path: PathBuf,
    /// Address of a SGLang server whose recorder is started, and asked for a dump into `path` every `dump_seconds`.
    pub sglang: Option<String>,
    /// Seconds between two dumps.
    #[serde(default = "sixty")]
    pub dump_seconds: u64,
    /// Seconds between two looks at `path`.
    #[serde(default = "one_second")]
    pub poll_seconds: f64,
}

fn sixty() -> u64 {
    60
}

fn one_second() -> f64 {
    1.0
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            data: None,
            token_file: None,
            tls: None,
            limits: Limits::default(),
            history: HistoryLimits::default(),
            decide: toml::Table::new(),
            models: BTreeMap::new(),
            source: vec![],
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        Self::from_toml(&text, path)
    }

    /// Reads and checks TOML text; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigError::Toml { path: path.to_owned(), message: format!("line {line}: {}", error.message()) }
        };
        let config: Self = toml::from_str(text).map_err(wrong)?;
        config.check()?;
        Ok(config)
    }

    /// Holds the values to what they may be.
    ///
    /// # Errors
    /// [`ConfigError`] names the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key: &str, reason: &str| ConfigError::Value { key: key.into(), reason: reason.into() };
        let limits = &self.limits;
        let positive = [
            ("limits.body_mib", limits.body_mib as u64),
            ("limits.connections", limits.connections as u64),
            ("limits.header_seconds", limits.header_seconds),
            ("limits.body_seconds", limits.body_seconds),
            ("limits.behind_steps", limits.behind_steps),
            ("limits.behind_mib", limits.behind_mib),
            ("limits.models", limits.models as u64),
            ("history.ids", self.history.ids as u64),
            ("history.decisions", self.history.decisions as u64),
            ("history.plans", self.history.plans as u64),
            ("history.days", self.history.days),
        ];
        if let Some((key, _)) = positive.into_iter().find(|&(_, number)| number == 0) {
            return Err(value(key, "0, expected 1 at least"));
        }
        self.options(None)?;
        for (name, model) in &self.models {
            check_name(name).map_err(|reason| value(&format!("models.{name}"), &reason))?;
            model
                .shape()
                .check()
                .map_err(|source| ConfigError::Spec { table: format!("models.{name}"), source })?;
            self.options(Some(name))?;
        }
        for (at, source) in self.source.iter().enumerate() {
            if !self.models.contains_key(&source.model) {
                let reason =
                    format!("no model `{}` in this file: expected a table [models.{0}]", source.model);
                return Err(value(&format!("source[{at}].model"), &reason));
            }
            if !(0.01..=3600.0).contains(&source.poll_seconds) {
                return Err(value(&format!("source[{at}].poll_seconds"), "expected 0.01 to 3600"));
            }
            if source.dump_seconds == 0 {
                return Err(value(&format!("source[{at}].dump_seconds"), "0, expected 1 at least"));
            }
        }
        Ok(())
    }

    /// How a model's plans are decided.
    ///
    /// # Errors
    /// When a key is unknown, of the wrong type, or holds what it should not.
    pub fn options(&self, model: Option<&str>) -> Result<DecideOptions, ConfigError> {
        let mut table = self.decide.clone();
        let mut named = "decide".to_owned();
        if let Some((name, model)) = model.and_then(|name| Some((name, self.models.get(name)?))) {
            table.extend(model.decide.clone());
            named = format!("models.{name}.decide");
        }
        if table.contains_key("move_cost") && !table.contains_key("horizon") {
            table.insert("horizon".into(), toml::Value::Integer(STATED_PRICE_HORIZON as i64));
        }
        let options: DecideOptions = table.try_into().map_err(|error: toml::de::Error| {
            ConfigError::Value { key: format!("[{named}]"), reason: error.message().to_owned() }
        })?;
        options.check().map_err(|source| ConfigError::Spec { table: named, source })?;
        Ok(options)
    }

    /// Sets `dry_run` for every model.
    pub fn publish_nothing(&mut self) {
        let tables = self.models.values_mut().map(|model| &mut model.decide);
        for table in tables.chain([&mut self.decide]) {
            table.insert("dry_run".into(), true.into());
        }
    }

    /// The bearer tokens; none where no file is named.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no token or one that is too short to be safe.
    pub fn tokens(&self) -> Result<Vec<String>, ConfigError> {
        let Some(path) = &self.token_file else { return Ok(vec![]) };
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
        let tokens: Vec<String> = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
            .filter(|token| !token.is_empty())
            .collect();
        let value = |reason: String| Err(ConfigError::Value { key: "token_file".into(), reason });
        if tokens.is_empty() {
            return value(format!("{} holds no token: expected one per line", path.display()));
        }
        if let Some(at) = tokens.iter().position(|token| token.len() < 16) {
            return value(format!("token {} has fewer than 16 characters", at + 1));
        }
        Ok(tokens)
    }

    /// Refuses to listen to everybody without a token.
    ///
    /// # Errors
    /// Where the address is not a loopback one and there is no token.
    pub fn check_exposure(&self, tokens: &[String]) -> Result<(), ConfigError> {
        if self.listen.ip().is_loopback() || !tokens.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Value {
            key: "listen".into(),
            reason: format!(
                "{} can be reached from elsewhere: expected a loopback address, or tokens (token_file = \"FILE\", --token-file)",
                self.listen
            ),
        })
    }

    /// Time for a request's headers.
    pub fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.header_seconds)
    }
}

/// A model's name: what fits into a URL as it is.
///
/// # Errors
/// Says what was expected.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!(
        "`{name}` is no name: expected 1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        Config::from_toml(text, Path::new("evenkeel.toml"))
    }

    #[test]
    fn nothing_is_a_configuration_and_models_differ() {
        assert_eq!(read("").unwrap(), Config::default());
        assert_eq!(Config::default().listen.to_string(), LISTEN);
        let config = read(
            "[decide]\nevery = 32\n[models.a]\nranks = 8\n[models.b]\nranks = 8\ndecide = { every = 5, policy = \"eplb\" }\n",
        )
        .unwrap();
        assert_eq!(config.options(Some("a")).unwrap().every, 32);
        let b = config.options(Some("b")).unwrap();
        assert_eq!((b.every, b.policy.as_str(), b.window), (5, "eplb", DecideOptions::default().window));
        // A price in batches belongs to the horizon and the freedom that it was chosen with.
        let stated = |text: &str| read(&format!("[decide]\n{text}\n")).unwrap().options(None).unwrap();
        let of = |options: DecideOptions| (options.horizon, options.share_of_copies());
        assert_eq!(of(stated("")), (1024, Some(0.01)));
        assert_eq!(of(stated("move_cost = 0.5")), (256, None));
        assert_eq!(of(stated("move_cost = 0.5\nhorizon = 100\ncopy_share = 0.02")), (100, Some(0.02)));
        assert_eq!(of(stated("copy_share = 0")), (1024, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("lisen = 1", "unknown field `lisen`"),
            ("\nlisten = \"here\"", "line 2: "),
            ("[limits]\nbody = 1", "unknown field `body`"),
            ("[limits]\nbody_mib = 0", "limits.body_mib: 0, expected 1"),
            ("[decide]\nevry = 3", "unknown field `evry`"),
            ("[decide]\nevery = 0", "every: 0"),
            ("[decide]\npolicy = \"best\"", "unknown policy `best`"),
            ("[models.a]\nredundant = 8", "missing field `ranks`"),
            ("[models.a]\nranks = 0", "0 ranks"),
            ("[models.a]\nranks = 8\nmodel = \"gpt\"", "unknown model"),
            ("[models.\"a b\"]\nranks = 8", "is no name"),
            ("[[source]]\nmodel = \"x\"\npath = \"y\"", "no model `x`"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn nobody_listens_to_everybody_without_a_token() {
        let open = read("listen = \"0.0.0.0:1\"").unwrap();
        assert!(open.check_exposure(&[]).unwrap_err().to_string().contains("can be reached from elsewhere"));
        open.check_exposure(&["0123456789abcdef".into()]).unwrap();
        Config::default().check_exposure(&[]).unwrap();
    }
}
