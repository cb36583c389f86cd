//! The command line together with the settings of the environment and the project file.
//!
//! In: the arguments and the [`Sources`]. Out: clap's matches in which settings are defaults. The matches
//! still distinguish the options of the command line from all others.
//!
//! Method. Clap does not check the relations of defaults: `requires` of a stated option is not met by a
//! default, and a default may conflict with a stated option. So the settings are first appended to the
//! command line as arguments, and clap checks the whole. A setting that does not fit the stated options is
//! left out. The final parse has the remaining settings as defaults, and ignores the relations, which hold
//! already.

use super::file::{ProjectFile, search};
use super::lookup::{Setting, Sources};
use super::options::{SELECTORS, find, options_of};
use anyhow::bail;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Commands that read no configuration. They work with a broken one.
const WITHOUT_CONFIGURATION: [&[&str]; 4] = [&["completions"], &["config", "path"], &["help"], &["man"]];

/// A failure to understand the arguments or the configuration.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error of the command line, or a text that the command line asks for.
    Arguments(clap::Error),
    /// An error of the environment or the project file.
    Configuration(anyhow::Error),
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        Self::Arguments(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Configuration(error)
    }
}

/// The arguments of a call after all sources are read.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) matches: ArgMatches,
    pub(super) location: Location,
    pub(super) file: Option<ProjectFile>,
    /// The settings that apply to this call.
    pub(super) settings: Vec<Setting>,
}

/// The location of the project file.
#[derive(Debug, Default)]
pub(super) struct Location {
    pub(super) path: Option<PathBuf>,
    /// True if the file is searched upward from the working folder.
    pub(super) searches: bool,
}

/// The parts of a call.
#[derive(Clone, Copy)]
struct Call<'a> {
    program: &'a Command,
    args: &'a [OsString],
}

/// Parses the arguments with the settings of all sources. The file is searched upward from `folder`.
pub(super) fn resolve(
    program: &Command,
    args: &[OsString],
    variable: &dyn Fn(&str) -> Option<OsString>,
    folder: Option<&Path>,
) -> Result<Resolved, Failure> {
    let call = Call { program, args };
    let stated = match program.clone().try_get_matches_from(args) {
        // A setting may supply what is missing.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            program.clone().ignore_errors(true).try_get_matches_from(args)?
        }
        parsed => parsed?,
    };
    let (names, leaf) = leaf(&stated);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let location = locate(leaf, variable, folder)?;
    if WITHOUT_CONFIGURATION.contains(&names.as_slice()) {
        let matches = program.clone().try_get_matches_from(args)?;
        return Ok(Resolved { matches, location, file: None, settings: vec![] });
    }
    let file = location.path.as_deref().map(|path| ProjectFile::read(path, folder, program)).transpose()?;
    let sources = Sources { variable, file: file.as_ref() };
    let explicit = explicit_ids(leaf);
    let mut settings = Vec::new();
    for option in options_of(program, &names) {
        if !explicit.contains(option.arg.get_id().as_str()) {
            settings.extend(sources.setting(&names, option)?);
        }
    }
    let settings = call.fitting(settings, &explicit)?;
    let matches = call.parse_with_defaults(&names, &settings)?;
    Ok(Resolved { matches, location, file, settings })
}

/// Returns the names of the subcommands of a call, and the matches of the last one.
fn leaf(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut names, mut leaf) = (Vec::new(), matches);
    while let Some((name, below)) = leaf.subcommand() {
        names.push(name.to_owned());
        leaf = below;
    }
    (names, leaf)
}

/// Returns the ids of the options that the command line states.
fn explicit_ids(matches: &ArgMatches) -> BTreeSet<String> {
    let stated = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    matches.ids().filter(stated).map(ToString::to_string).collect()
}

/// Returns the location of the project file: `--config`, else `EVENKEEL_CONFIG`, else the first one upward.
fn locate(
    leaf: &ArgMatches,
    variable: &dyn Fn(&str) -> Option<OsString>,
    folder: Option<&Path>,
) -> anyhow::Result<Location> {
    let stated = |path: PathBuf| Location { path: Some(path), searches: false };
    let [config, no_config] = SELECTORS;
    if let Ok(Some(path)) = leaf.try_get_one::<PathBuf>(config) {
        return Ok(stated(path.clone()));
    }
    let named = |name: &str| variable(name).filter(|value| !value.is_empty());
    let off = match named("EVENKEEL_NO_CONFIG").map(|value| value.to_str().map(str::to_owned)) {
        None => false,
        Some(Some(text)) if ["true", "1"].contains(&text.as_str()) => true,
        Some(Some(text)) if ["false", "0"].contains(&text.as_str()) => false,
        Some(text) => bail!(
            "EVENKEEL_NO_CONFIG: found `{}`, expected true, false, 1 or 0",
            text.unwrap_or_else(|| "bytes that are not UTF-8".into())
        ),
    };
    if off || leaf.try_get_one::<bool>(no_config).ok().flatten() == Some(&true) {
        return Ok(Location::default());
    }
    if let Some(path) = named("EVENKEEL_CONFIG") {
        return Ok(stated(path.into()));
    }
    Ok(Location { path: folder.and_then(search), searches: true })
}

impl Call<'_> {
    /// Parses the arguments with settings appended as arguments.
    fn parse(&self, settings: &[&Setting]) -> Result<ArgMatches, clap::Error> {
        self.program.clone().try_get_matches_from(with_tokens(self.args, settings))
    }

    /// Returns the settings that fit the stated options and one another.
    fn fitting(&self, settings: Vec<Setting>, explicit: &BTreeSet<String>) -> Result<Vec<Setting>, Failure> {
        let mut settings = settings;
        let mut is_checked = false;
        loop {
            let all: Vec<&Setting> = settings.iter().collect();
            let error = match self.parse(&all) {
                // A setting that overrides a stated option does not fit.
                Ok(matches) if is_checked || explicit.is_subset(&explicit_ids(leaf(&matches).1)) => {
                    return Ok(settings);
                }
                Ok(_) => None,
                Err(error) => Some(error),
            };
            let before = settings.len();
            settings = self.without_unmet(settings, explicit);
            is_checked = true;
            if settings.len() < before {
                continue;
            }
            let Some(error) = error else { return Ok(settings) };
            match conflict(&error, &settings) {
                Some((first, second)) => {
                    let loser = weaker(&settings[first], &settings[second])?;
                    let index = if loser { first } else { second };
                    settings.remove(index);
                }
                // The error is one of the command line itself.
                None => return Err(error.into()),
            }
        }
    }

    /// Returns the settings without those that conflict with stated options or lack an option that they
    /// require.
    fn without_unmet(&self, settings: Vec<Setting>, explicit: &BTreeSet<String>) -> Vec<Setting> {
        let missing_anyway = self.parse(&[]).err().map(|error| missing(&error)).unwrap_or_default();
        let mut needs: Vec<(Setting, Vec<String>)> = Vec::new();
        for setting in settings {
            match self.parse(&[&setting]) {
                Ok(matches) if explicit.is_subset(&explicit_ids(leaf(&matches).1)) => {
                    needs.push((setting, vec![]));
                }
                Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                    let mut needed = missing(&error);
                    needed.retain(|name| !missing_anyway.contains(name));
                    needs.push((setting, needed));
                }
                _ => {}
            }
        }
        loop {
            let names: Vec<Setting> = needs.iter().map(|(setting, _)| setting.clone()).collect();
            let met = |name: &String| names.iter().any(|setting| names_option(name, setting));
            let before = needs.len();
            needs.retain(|(_, needed)| needed.iter().all(met));
            if needs.len() == before {
                return names;
            }
        }
    }

    /// Parses the arguments with settings as defaults.
    fn parse_with_defaults(&self, path: &[&str], settings: &[Setting]) -> Result<ArgMatches, clap::Error> {
        if settings.is_empty() {
            return self.program.clone().try_get_matches_from(self.args);
        }
        let mut program = self.program.clone();
        for setting in settings {
            program = with_default(program, &path[..setting.depth], setting);
        }
        // All relations hold: the arguments were parsed together with the settings.
        program.ignore_errors(true).try_get_matches_from(self.args)
    }
}

/// Returns the arguments with those of settings behind them, in front of `--`.
pub(super) fn with_tokens(args: &[OsString], settings: &[&Setting]) -> Vec<OsString> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let tokens = settings.iter().flat_map(|setting| setting.tokens.iter().cloned());
    args[..end].iter().cloned().chain(tokens).chain(args[end..].iter().cloned()).collect()
}

/// Returns the command with a setting as the default of its option. `path` leads to the command that defines
/// the option.
fn with_default(command: Command, path: &[&str], setting: &Setting) -> Command {
    match path.split_first() {
        Some((name, rest)) => command.mut_subcommand(name, |sub| with_default(sub, rest, setting)),
        None => command
            .mut_arg(&setting.id, |arg| arg.required(false).default_values(setting.values.iter().cloned())),
    }
}

/// Returns the missing options that an error names.
fn missing(error: &clap::Error) -> Vec<String> {
    strings(error, ContextKind::InvalidArg)
}

fn strings(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    }
}

/// Returns whether clap's name of an option, as in `--ranks <R>`, is the option of a setting. The name of a
/// group lists its options, as in `<--a <A>|--b>`.
fn names_option(name: &str, setting: &Setting) -> bool {
    let parts = name.trim_start_matches('<').split('|');
    let mut longs = parts.filter_map(|part| part.strip_prefix("--"));
    longs.any(|part| {
        part.strip_prefix(setting.name.as_str())
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-'))
    })
}

/// Returns two settings that an error reports as conflicting.
fn conflict(error: &clap::Error, settings: &[Setting]) -> Option<(usize, usize)> {
    if error.kind() != ErrorKind::ArgumentConflict {
        return None;
    }
    let position = |name: &String| settings.iter().position(|setting| names_option(name, setting));
    let first = strings(error, ContextKind::InvalidArg).iter().find_map(position)?;
    let others = strings(error, ContextKind::PriorArg);
    let second = others.iter().filter_map(position).find(|&other| other != first)?;
    Some((first, second))
}

/// Returns whether the first of two conflicting settings has the lower precedence. Two settings of the same
/// precedence are an error.
fn weaker(first: &Setting, second: &Setting) -> anyhow::Result<bool> {
    if first.rank == second.rank {
        bail!(
            "{}: conflicts with {}: expected at most one of --{} and --{}",
            first.origin,
            second.origin,
            first.name,
            second.name
        );
    }
    Ok(first.rank > second.rank)
}

/// Returns the options that the command line states, with their values.
pub(super) fn stated(program: &Command, matches: &ArgMatches) -> Vec<(String, Vec<OsString>)> {
    let (names, leaf) = leaf(matches);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let explicit = explicit_ids(leaf);
    let options = if find(program, &names).is_some() { options_of(program, &names) } else { vec![] };
    let options = options.into_iter().filter(|option| explicit.contains(option.arg.get_id().as_str()));
    let values = |id: &str| leaf.get_raw(id).into_iter().flatten().map(ToOwned::to_owned).collect();
    options.map(|option| (option.name.to_owned(), values(option.arg.get_id().as_str()))).collect()
}
