//! The configuration file `evenkeel.toml`: addresses, tokens, limits, models and sources.
//!
//! Input is TOML text in which every key is optional. Output is a checked [`ServiceConfig`]. An unknown key
//! or an invalid value is an error that names the key. docs/serve.md lists all keys.

use crate::controller::config::{ControllerConfig, ModelSpec, STATED_PRICE_HORIZON, SpecError};
pub use crate::limits::{HistoryLimits, RequestLimits};
use crate::{Phase, files, ranges, tokens};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// The smallest `limits.memory_mib` in units of `limits.body_mib`. Large bodies get five eighths of that
/// memory. That is enough to parse one body of the largest size.
const MEMORY_PER_BODY: usize = 16;

/// The default listen address.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8787";

/// Error of a configuration that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is no TOML, or a key is unknown or has the wrong type. The message names the line.
    #[error("{path}: {message}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error and its line.
        message: String,
    },
    /// A key has an invalid value.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// The actual and the expected value.
        reason: String,
    },
    /// The shape or the options of a model are invalid.
    #[error("[{table}] {source}")]
    Spec {
        /// The table.
        table: String,
        /// The error.
        source: SpecError,
    },
}

/// The configuration of the service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// The address and port to listen on. Port 0 selects any free port.
    pub listen: SocketAddr,
    /// The folder of the store.
    pub data: Option<PathBuf>,
    /// The file of bearer tokens, one per line. A line that begins with `#` is a comment.
    pub token_file: Option<PathBuf>,
    /// The certificate and key for TLS. Without them the service speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The limits of requests.
    pub limits: RequestLimits,
    /// The limits of the kept history.
    pub history: HistoryLimits,
    /// The options of decisions, for all models.
    pub decide: toml::Table,
    /// The models. `PUT /v1/models/NAME` creates further ones.
    pub models: BTreeMap<String, ModelTable>,
    /// The sources from which loads are fetched.
    pub source: Vec<SourceConfig>,
}

/// The certificate and the key for TLS, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A `[models.NAME]` table: the model's group and its overrides of `[decide]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelTable {
    /// The number of ranks.
    pub ranks: usize,
    /// The number of redundant slots over all ranks.
    #[serde(default)]
    pub redundant: usize,
    /// The number of nodes.
    #[serde(default = "default_count")]
    pub nodes: usize,
    /// The number of expert groups.
    #[serde(default = "default_count")]
    pub groups: usize,
    /// The name of a model that determines the size of an expert.
    pub model: Option<String>,
    /// The name of the GPU.
    pub gpu: Option<String>,
    /// The bandwidth at which a rank receives, in gigabits per second.
    pub link_gbps: Option<u64>,
    /// The overrides of `[decide]`.
    #[serde(default)]
    pub decide: toml::Table,
}

fn default_count() -> usize {
    1
}

impl ModelTable {
    /// Returns the shape.
    pub fn to_spec(&self) -> ModelSpec {
        ModelSpec {
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

/// A source from which loads are fetched.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SourceConfig {
    /// The model that receives the loads.
    pub model: String,
    /// The phase that receives the loads.
    #[serde(default)]
    pub phase: Phase,
    /// A growing file (CSV or vLLM JSONL), or a folder of dumps.
    pub path: PathBuf,
    /// The address of an SGLang server. The service starts its recorder and requests a dump into `path` every
    /// `dump_seconds`.
    pub sglang: Option<String>,
    /// The seconds between two dumps.
    #[serde(default = "default_dump_seconds")]
    pub dump_seconds: u64,
    /// The seconds between two reads of `path`.
    #[serde(default = "default_poll_seconds")]
    pub poll_seconds: f64,
}

fn default_dump_seconds() -> u64 {
    60
}

fn default_poll_seconds() -> f64 {
    1.0
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            data: None,
            token_file: None,
            tls: None,
            limits: RequestLimits::default(),
            history: HistoryLimits::default(),
            decide: toml::Table::new(),
            models: BTreeMap::new(),
            source: vec![],
        }
    }
}

impl ServiceConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_shared(path, str::to_owned)
    }

    /// Reads and checks a file that other programs read too. `own_part` returns the text without their
    /// tables.
    ///
    /// # Errors
    /// The errors are those of [`ServiceConfig::read`].
    pub fn read_shared(path: &Path, own_part: impl FnOnce(&str) -> String) -> Result<Self, ConfigError> {
        let text =
            files::read_text(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        Self::from_toml(&own_part(&text), path)
    }

    /// Reads and checks TOML text. Errors name `path`.
    ///
    /// # Errors
    /// The errors are those of [`ServiceConfig::read`].
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigError::Toml { path: path.to_owned(), message: format!("line {line}: {}", error.message()) }
        };
        let table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let out_of_range =
            |(key, reason)| ConfigError::Toml { path: path.to_owned(), message: format!("{key}: {reason}") };
        ranges::check_file(&serde_json::to_value(&table).unwrap_or_default()).map_err(out_of_range)?;
        let config: Self = toml::from_str(text).map_err(wrong)?;
        config.check()?;
        Ok(config)
    }

    /// Checks all values.
    ///
    /// # Errors
    /// [`ConfigError`] names the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key: &str, reason: &str| value_error(key.into(), reason.into());
        let ranged = |table: &str, ranges, value: serde_json::Result<serde_json::Value>| {
            let checked = ranges::check_ranges(ranges, &value.unwrap_or_default());
            checked.map_err(|(key, reason)| value_error(format!("{table}.{key}"), reason))
        };
        ranged("limits", ranges::LIMITS, serde_json::to_value(&self.limits))?;
        ranged("history", ranges::HISTORY, serde_json::to_value(&self.history))?;
        let (memory, body) = (self.limits.memory_mib, self.limits.body_mib);
        if memory < MEMORY_PER_BODY * body {
            let reason =
                format!("{memory}, expected at least {MEMORY_PER_BODY} times limits.body_mib ({body})");
            return Err(value_error("limits.memory_mib".into(), reason));
        }
        self.controller_config(None)?;
        for (name, model) in &self.models {
            check_name(name).map_err(|error| value(&format!("models.{name}"), &error.to_string()))?;
            model
                .to_spec()
                .check()
                .map_err(|source| ConfigError::Spec { table: format!("models.{name}"), source })?;
            self.controller_config(Some(name))?;
        }
        for (at, source) in self.source.iter().enumerate() {
            if !self.models.contains_key(&source.model) {
                let reason =
                    format!("no model `{}` in this file: expected a table [models.{0}]", source.model);
                return Err(value(&format!("source[{at}].model"), &reason));
            }
            let numbers = serde_json::json!({
                "dump_seconds": source.dump_seconds,
                "poll_seconds": source.poll_seconds,
            });
            ranged(&format!("source[{at}]"), ranges::SOURCE, Ok(numbers))?;
        }
        Ok(())
    }

    /// Returns the options of decisions of a model, or the general ones.
    ///
    /// # Errors
    /// Fails if a key is unknown, has the wrong type, or has an invalid value.
    pub fn controller_config(&self, model: Option<&str>) -> Result<ControllerConfig, ConfigError> {
        let mut table = self.decide.clone();
        let mut named = "decide".to_owned();
        if let Some((name, model)) = model.and_then(|name| Some((name, self.models.get(name)?))) {
            table.extend(model.decide.clone());
            named = format!("models.{name}.decide");
        }
        if table.contains_key("move_cost") && !table.contains_key("horizon") {
            table.insert("horizon".into(), toml::Value::Integer(STATED_PRICE_HORIZON as i64));
        }
        let options: ControllerConfig = table.try_into().map_err(|error: toml::de::Error| {
            ConfigError::Value { key: format!("[{named}]"), reason: error.message().to_owned() }
        })?;
        options.check().map_err(|source| ConfigError::Spec { table: named, source })?;
        Ok(options)
    }

    /// Sets `dry_run` for every model.
    pub fn set_dry_run(&mut self) {
        let tables = self.models.values_mut().map(|model| &mut model.decide);
        for table in tables.chain([&mut self.decide]) {
            table.insert("dry_run".into(), true.into());
        }
    }

    /// Returns the bearer tokens, or none if no token file is configured.
    ///
    /// # Errors
    /// Fails if the file cannot be read, holds no token, or holds a token that is too short to be safe.
    pub fn read_tokens(&self) -> Result<Vec<String>, ConfigError> {
        self.token_file.as_deref().map_or(Ok(vec![]), tokens::read_tokens)
    }

    /// Refuses to serve without a token at an address that other machines can reach.
    ///
    /// # Errors
    /// Fails if the address is not a loopback address and there is no token.
    pub fn check_exposure(listen: SocketAddr, tokens: &[String]) -> Result<(), ConfigError> {
        if listen.ip().is_loopback() || !tokens.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Value {
            key: "listen".into(),
            reason: format!(
                "{listen} is reachable from other machines: expected a loopback address, or tokens (token_file = \"FILE\", --token-file)"
            ),
        })
    }

    /// Returns a warning for each secret file that other users can read.
    pub(crate) fn exposed_files(&self, store: &Path) -> Vec<String> {
        let token_file = self.token_file.as_deref().map(|path| files::exposure_warning("token file", path));
        [token_file.flatten(), files::exposure_warning("store", store)].into_iter().flatten().collect()
    }

    /// Returns the time limit for a request's headers.
    pub fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.header_seconds)
    }
}

fn value_error(key: String, reason: String) -> ConfigError {
    ConfigError::Value { key, reason }
}

/// Error of a name that does not fit into a URL without escapes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not a valid name: expected 1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`"
)]
pub struct InvalidName(String);

/// Checks that a model's name fits into a URL without escapes.
///
/// # Errors
/// Returns [`InvalidName`] if it does not.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    Err(InvalidName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ServiceConfig, ConfigError> {
        ServiceConfig::from_toml(text, Path::new("evenkeel.toml"))
    }

    #[test]
    fn nothing_is_a_configuration_and_models_differ() {
        assert_eq!(read("").unwrap(), ServiceConfig::default());
        assert_eq!(ServiceConfig::default().listen.to_string(), DEFAULT_LISTEN);
        let config = read(
            "[decide]\nevery = 32\n[models.a]\nranks = 8\n[models.b]\nranks = 8\ndecide = { every = 5, policy = \"eplb\" }\n",
        )
        .unwrap();
        assert_eq!(config.controller_config(Some("a")).unwrap().every, 32);
        let b = config.controller_config(Some("b")).unwrap();
        assert_eq!((b.every, b.policy.as_str(), b.window), (5, "eplb", ControllerConfig::default().window));
        // A stated `move_cost` brings its own default horizon and no limit on transfers.
        let stated =
            |text: &str| read(&format!("[decide]\n{text}\n")).unwrap().controller_config(None).unwrap();
        let of = |options: ControllerConfig| (options.horizon, options.copy_share_limit());
        assert_eq!(of(stated("")), (16384, Some(0.01)));
        assert_eq!(of(stated("move_cost = 0.5")), (256, None));
        assert_eq!(of(stated("move_cost = 0.5\nhorizon = 100\ncopy_share = 0.02")), (100, Some(0.02)));
        assert_eq!(of(stated("copy_share = 0")), (16384, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("lisen = 1", "unknown field `lisen`"),
            ("\nlisten = \"here\"", "line 2: "),
            ("[limits]\nbody = 1", "unknown field `body`"),
            ("[limits]\nbody_mib = 0", "limits.body_mib: 0, expected 1 to 1024"),
            ("[decide]\nevry = 3", "unknown field `evry`"),
            ("[decide]\nevery = 0", "decide.every: 0, expected 1 to 1000000000"),
            ("[decide]\npolicy = \"best\"", "unknown policy `best`"),
            ("[models.a]\nredundant = 8", "missing field `ranks`"),
            ("[models.a]\nranks = 0", "models.a.ranks: 0, expected 1 to 1024"),
            ("[models.a]\nranks = 8\nmodel = \"gpt\"", "unknown model"),
            ("[models.\"a b\"]\nranks = 8", "is not a valid name"),
            ("[[source]]\nmodel = \"x\"\npath = \"y\"", "no model `x`"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn every_numeric_key_has_a_range_that_is_held() {
        let model = "[models.m]\nranks = 8\n";
        let tables = [
            ("limits", ranges::LIMITS, String::new(), "limits"),
            ("history", ranges::HISTORY, String::new(), "history"),
            ("decide", ranges::DECIDE, String::new(), "decide"),
            ("models.m.decide", ranges::DECIDE, model.into(), "models.m.decide"),
            ("models.m", ranges::SHAPE, String::new(), "models.m"),
            ("[source]", ranges::SOURCE, format!("{model}link_gbps = 8\n"), "source[0]"),
        ];
        for (table, ranges, before, named) in tables {
            for &(key, least, most) in ranges {
                let wrong = [
                    "-1".to_owned(),
                    "9223372036854775807".to_owned(),
                    "nan".into(),
                    "-inf".into(),
                    "1e300".into(),
                    format!("{}", most * 2.0 + 1.0),
                ];
                for number in wrong {
                    let ranks = if table == "models.m" && key != "ranks" { "ranks = 8\n" } else { "" };
                    let source = if table == "[source]" { "model = \"m\"\npath = \"p\"\n" } else { "" };
                    let message =
                        read(&format!("{before}[{table}]\n{ranks}{source}{key} = {number}\n")).unwrap_err();
                    let message = message.to_string();
                    assert!(message.contains(&format!("{named}.{key}: ")), "{key} = {number}: {message}");
                    assert!(message.contains(&format!("expected {least} to {most}")), "{message}");
                }
            }
        }
        // No numeric key is left out of the tables.
        let keys = |value: serde_json::Value| {
            let table = value.as_object().unwrap().clone();
            let number = |value: &serde_json::Value| value.is_number();
            table.into_iter().filter(|(_, value)| number(value)).map(|(key, _)| key).collect::<Vec<_>>()
        };
        let all = [
            (serde_json::to_value(RequestLimits::default()).unwrap(), ranges::LIMITS),
            (serde_json::to_value(HistoryLimits::default()).unwrap(), ranges::HISTORY),
            (serde_json::to_value(ControllerConfig::default()).unwrap(), ranges::DECIDE),
        ];
        for (value, ranges) in all {
            for key in keys(value) {
                assert!(ranges.iter().any(|(known, ..)| *known == key), "{key} has no range");
            }
        }
        // The documentation lists the same ranges.
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/serve.md");
        let text = std::fs::read_to_string(file).unwrap();
        let defaults = serde_json::to_value(RequestLimits::default()).unwrap();
        for (key, least, most) in ranges::LIMITS {
            let row = format!("| `{key}` | {} | {least} to {most}", defaults[*key]);
            assert!(text.contains(&row), "docs/serve.md lacks {row}");
        }
        let others = [ranges::HISTORY, ranges::DECIDE, ranges::SHAPE, ranges::SOURCE].concat();
        for (key, least, most) in others {
            let fits = |line: &str| {
                (line.contains(&format!("`{key}`")) || line.contains(&format!(".{key}`")))
                    && line.ends_with(&format!("| {least} to {most} |"))
            };
            assert!(text.lines().any(fits), "docs/serve.md lacks the range of {key}: {least} to {most}");
        }
        let message = read("[limits]\nmemory_mib = 1023\n").unwrap_err().to_string();
        assert!(
            message.contains("limits.memory_mib: 1023, expected at least 16 times limits.body_mib"),
            "{message}"
        );
    }

    #[test]
    fn nobody_listens_to_everybody_without_a_token() {
        let open = read("listen = \"0.0.0.0:1\"").unwrap();
        let check = ServiceConfig::check_exposure;
        let message = check(open.listen, &[]).unwrap_err().to_string();
        assert!(message.contains("is reachable from other machines"));
        check(open.listen, &["0123456789abcdef".into()]).unwrap();
        check(ServiceConfig::default().listen, &[]).unwrap();
    }
}
