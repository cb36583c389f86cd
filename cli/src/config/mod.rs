//! Configuration of the program: flags, environment variables and the project file `evenkeel.toml`.
//!
//! In: the command line. Out: the parsed [`Cli`], in which every option has its value from the source with
//! the highest precedence: flag, variable, file, built-in default. All of it works on clap's tree of commands
//! and knows no single command.
//!
//! - `options`: the options of each command, and the tables of the file.
//! - `variables`: the names of environment variables.
//! - `file`: the project file.
//! - `lookup`: the value of one option, and its check.
//! - `resolve`: the command line together with the values.
//! - `service`: the part of the file that `evenkeel serve` reads.
//! - `show`, `generate`: the commands `config show`, `completions` and `man`.

mod file;
mod generate;
mod lookup;
mod options;
mod resolve;
#[cfg(feature = "serve")]
mod service;
mod show;
mod variables;

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use crate::Cli;
use crate::output::{Output, print_json, print_text};
use anyhow::bail;
use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, Subcommand};
use file::ProjectFile;
pub(crate) use generate::{CompletionsArgs, ManArgs};
use lookup::Sources;
use options::{command_paths, is_secret};
use resolve::{Failure, Location, Resolved, resolve};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Options that select the project file.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConfigArgs {
    /// Project file with values of options [default: evenkeel.toml in the working folder or above it]
    #[arg(
        id = "config_file",
        long = "config",
        global = true,
        value_name = "FILE",
        conflicts_with = "no_config",
        hide_short_help = true
    )]
    config_file: Option<PathBuf>,
    /// Read no project file
    #[arg(long, global = true, hide_short_help = true)]
    no_config: bool,
}

/// Show the effective values of options and where they come from.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    Show(ShowArgs),
    /// Print the path of the project file that is in use.
    Path,
}

/// Show the value of every option that differs from its built-in default, with its source.
///
/// Sources are: flag (of this call), a variable of the environment, a line of the project file, or the
/// built-in default. Variables that begin with EVENKEEL_ and that no option reads are listed too.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Command to show, as in `trace inspect` [default: all commands]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Show the options with built-in defaults too
    #[arg(long)]
    all: bool,
}

/// The configuration of this call.
#[derive(Debug)]
struct Session {
    path: Option<PathBuf>,
    /// True if the file is searched upward from the working folder.
    #[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "only the service searches again"))]
    searches: bool,
    file: Option<ProjectFile>,
    stated: Vec<(String, Vec<OsString>)>,
    args: Vec<OsString>,
}

static SESSION: OnceLock<Session> = OnceLock::new();

/// Returns the tree of commands. Long help texts name the variable of each option.
pub(crate) fn command() -> Command {
    variables::describe(Cli::command())
}

/// Parses the command line, with values from the environment and the project file.
///
/// An error of the command line ends the process, as do `--help` and `--version`.
///
/// # Errors
/// Fails if the environment or the project file is invalid.
pub(crate) fn parse() -> anyhow::Result<Cli> {
    let program = command();
    let args: Vec<OsString> = std::env::args_os().collect();
    let folder = std::env::current_dir().ok();
    let resolved = match resolve(&program, &args, &|name| std::env::var_os(name), folder.as_deref()) {
        Ok(resolved) => resolved,
        Err(Failure::Arguments(error)) => error.exit(),
        Err(Failure::Configuration(error)) => return Err(error),
    };
    let Resolved { matches, location, file, settings } = resolved;
    let public: Vec<_> = settings.iter().filter(|setting| !is_secret(&setting.name)).collect();
    let args = resolve::with_tokens(&args, &public);
    let Location { path, searches } = location;
    let session = Session { path, searches, file, stated: resolve::stated(&program, &matches), args };
    let cli = from_matches(program, &matches);
    let _ = SESSION.set(session);
    Ok(cli)
}

fn from_matches(mut program: Command, matches: &ArgMatches) -> Cli {
    Cli::from_arg_matches(matches).unwrap_or_else(|error| error.format(&mut program).exit())
}

/// Returns the arguments that have the effect of this call without the environment and the project file.
pub(crate) fn effective_args() -> Vec<OsString> {
    SESSION.get().map_or_else(|| std::env::args_os().collect(), |session| session.args.clone())
}

/// Returns the path of the project file. A file that appears after the start is found too.
#[cfg(feature = "serve")]
pub(crate) fn path() -> Option<PathBuf> {
    let session = SESSION.get()?;
    let search = || session.searches.then(|| file::search(&std::env::current_dir().ok()?)).flatten();
    session.path.clone().or_else(search)
}

/// Returns the part of a project file that the service reads.
#[cfg(feature = "serve")]
pub(crate) fn service_text(text: &str) -> String {
    service::service_text(text, &Cli::command())
}

/// Runs `evenkeel config`.
pub(crate) fn run(config: &ConfigCommand, output: Output) -> anyhow::Result<()> {
    let session = SESSION.get();
    let path = session.and_then(|session| session.path.as_deref());
    let args = match config {
        ConfigCommand::Show(args) => args,
        ConfigCommand::Path if output.is_json() => {
            return print_json(&serde_json::json!({ "file": path.map(|path| path.display().to_string()) }));
        }
        ConfigCommand::Path => match path {
            Some(path) => return print_text(&format!("{}\n", path.display())),
            None => bail!("no {} in the working folder or above it", file::FILE_NAME),
        },
    };
    let program = command();
    let only: Vec<&str> = args.command.iter().map(String::as_str).collect();
    if options::find(&program, &only).is_none() {
        let known: Vec<String> = command_paths(&program).iter().map(|path| path.join(" ")).collect();
        bail!("no command `{}`: expected one of {}", only.join(" "), known.join(", "));
    }
    let variable = |name: &str| std::env::var_os(name);
    let sources = Sources { variable: &variable, file: session.and_then(|session| session.file.as_ref()) };
    let stated = session.map(|session| session.stated.as_slice()).unwrap_or_default();
    let values = show::effective_values(&program, sources, stated, &only)?;
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = variables::unknown(&program, names);
    if output.is_json() {
        return print_json(&show::render_document(&values, &unknown, path, args.all));
    }
    print_text(&show::render(&values, &unknown, path, args.all))
}

/// Runs `evenkeel completions`.
pub(crate) fn run_completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    generate::print_completions(args, command())
}

/// Runs `evenkeel man`.
pub(crate) fn run_man(args: &ManArgs) -> anyhow::Result<()> {
    generate::print_pages(args, command())
}
