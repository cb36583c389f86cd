//! `evenkeel serve`: the sidecar.

use crate::config;
use crate::output::{Output, escape_control, print_text};
use anyhow::Context as _;
use evenkeel_serve::{OPENER_THREAD, ServeError, ServerControl, ServerSetup, ServiceConfig, serve};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Keep plans up to date while a model runs
///
/// The service accepts loads, decides on moves, and serves plans and a page.
/// Without a file, the service listens on 127.0.0.1:8787 and keeps its store in the user's state folder. The
/// first line on stdout is the URL. Decisions are logged on stderr. SIGTERM shuts it down in order, SIGHUP
/// reloads the configuration. docs/serve.md describes the interface and all keys of the configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel serve\n  evenkeel trace replay TRACE --to http://127.0.0.1:8787 --speed 10   # in another \
    terminal\n  evenkeel serve --config evenkeel.toml --data /var/lib/evenkeel\n  evenkeel serve --listen 0.0.0.0:8787 --token-file TOKENS --dry-run"
)]
pub(crate) struct ServeArgs {
    /// Folder of the store [default: $XDG_STATE_HOME/evenkeel or ~/.local/state/evenkeel]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Address and port; port 0 selects a free one [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// File with bearer tokens, one per line; a line that begins with `#` is a comment
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Decide and record, but publish no plan
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: ServeArgs, output: Output) -> anyhow::Result<()> {
    let args = Arc::new(args);
    let config = args.read_config()?;
    let folder = match (&args.data, &config.data) {
        (Some(folder), _) | (None, Some(folder)) => folder.clone(),
        (None, None) => state_folder()?,
    };
    let log: evenkeel_serve::LogCallback =
        Arc::new(|line: &str| drop(writeln!(std::io::stderr(), "{}", escape_control(line))));
    if output.is_verbose() {
        log(&format!("store in {}", folder.display()));
    }
    let reloaded = args.clone();
    let setup = ServerSetup::new(config, folder, move || reloaded.read_config(), log);
    silence_store_panics();
    let ready = |url: &str, control: &ServerControl| {
        watch_signals(control.clone())
            .map_err(|source| ServeError::Io { what: "signals".to_owned(), source })?;
        let line = if output.is_json() {
            format!("{}\n", serde_json::json!({ "url": url }))
        } else {
            format!("{url}\n")
        };
        let _ = print_text(&line);
        Ok(())
    };
    Ok(serve(&setup, ready)?)
}

/// Keeps panics silent on the thread that opens the store. The service reports them as errors.
fn silence_store_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(OPENER_THREAD) {
            hook(info);
        }
    }));
}

/// Passes the signals of this process to a service on a thread of their own.
fn watch_signals(control: ServerControl) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let pass_signals = move || {
        for signal in signals.forever() {
            if signal == SIGHUP { control.reload() } else { control.stop() }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(pass_signals).map(drop)
}

impl ServeArgs {
    /// Returns the configuration of the file with the overrides of the command line.
    fn read_config(&self) -> Result<ServiceConfig, evenkeel_serve::ConfigError> {
        // A file found at the start has to exist at every later reload.
        let mut config = match config::path() {
            Some(path) => ServiceConfig::read_shared(&path, config::service_text)?,
            None => ServiceConfig::default(),
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(file) = &self.token_file {
            config.token_file = Some(file.clone());
        }
        if self.dry_run {
            config.set_dry_run();
        }
        Ok(config)
    }
}

/// Returns the folder in which programs keep state.
fn state_folder() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let base = base
        .context("no folder for the store: neither XDG_STATE_HOME nor HOME is set; expected --data FOLDER")?;
    Ok(base.join("evenkeel"))
}
