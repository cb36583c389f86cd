//! `evenkeel serve`: the sidecar.

use super::output::{Output, print};
use anyhow::Context as _;
use evenkeel::serve::{Config, Setup, serve};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file that is read where none is named, if it is there.
const CONFIG: &str = "evenkeel.toml";

/// Keep plans up to date while a model runs: take loads, decide, serve plans and a page
///
/// Without any file it listens on 127.0.0.1:8787 and keeps its store in the user's state folder. The first line on stdout is the
/// URL; decisions are logged on stderr. SIGTERM ends it in order, SIGHUP reads the configuration again. docs/serve.md has the
/// interface and all keys of the configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  evenkeel serve\n  evenkeel trace replay TRACE --to http://127.0.0.1:8787 --speed 10   # in another \
    terminal\n  evenkeel serve --config evenkeel.toml --data /var/lib/evenkeel\n  evenkeel serve --listen 0.0.0.0:8787 --token-file TOKENS --dry-run"
)]
pub(crate) struct ServeArgs {
    /// Configuration [default: evenkeel.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the store [default: $XDG_STATE_HOME/evenkeel or ~/.local/state/evenkeel]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// File with bearer tokens, one per line
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Decide and record, but publish no plan
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: ServeArgs, output: Output) -> anyhow::Result<()> {
    let args = Arc::new(args);
    let config = args.configuration()?;
    let folder = match (&args.data, &config.data) {
        (Some(folder), _) | (None, Some(folder)) => folder.clone(),
        (None, None) => state_folder()?,
    };
    let log: evenkeel::serve::Log = Arc::new(|line: &str| drop(writeln!(std::io::stderr(), "{line}")));
    if output.verbose() {
        log(&format!("store in {}", folder.display()));
    }
    let again = args.clone();
    let setup = Setup { config, folder, reload: Box::new(move || again.configuration()), log };
    let ready = |url: &str| {
        let line = if output.json() {
            format!("{}\n", serde_json::json!({ "url": url }))
        } else {
            format!("{url}\n")
        };
        let _ = print(&line);
    };
    Ok(serve(&setup, ready)?)
}

impl ServeArgs {
    /// The file, and what the command line says otherwise.
    fn configuration(&self) -> Result<Config, evenkeel::serve::ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None if Path::new(CONFIG).exists() => Config::read(Path::new(CONFIG))?,
            None => Config::default(),
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(file) = &self.token_file {
            config.token_file = Some(file.clone());
        }
        if self.dry_run {
            config.publish_nothing();
        }
        Ok(config)
    }
}

/// Where programs keep state.
fn state_folder() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let base = base
        .context("no folder for the store: neither XDG_STATE_HOME nor HOME is set; expected --data FOLDER")?;
    Ok(base.join("evenkeel"))
}
