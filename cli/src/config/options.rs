//! The options that a configuration may set.
//!
//! In: clap's tree of commands. Out: the configurable options of each command, and the tables of the project
//! file that hold them. Nothing here depends on a particular command, except the lists of exceptions.

use clap::{Arg, ArgAction, Command};

/// Ids of the options that select the configuration itself.
pub(super) const SELECTORS: [&str; 2] = ["config_file", "no_config"];

/// The table of the project file for options of every command.
pub(super) const GLOBAL_TABLE: &str = "output";

/// Tables of the project file that hold options of several commands.
pub(super) const SHARED_TABLES: [(&str, &[&str]); 3] = [
    ("cluster", &["ranks", "nodes", "redundant", "groups", "uneven"]),
    ("model", &["model", "top-k", "hidden", "intermediate", "num-layers"]),
    ("batches", &["batch-tokens", "decode-batch", "order", "seed", "resample"]),
];

/// Tables and keys of the project file that belong to the service. `evenkeel_serve::Config` checks them.
pub(super) const SERVICE_KEYS: [&str; 9] =
    ["data", "decide", "history", "limits", "listen", "models", "source", "tls", "token_file"];

/// Options that mean something different in each command. They are set for one command at a time.
pub(super) const COMMAND_SPECIFIC: [&str; 23] = [
    "all",
    "blend",
    "check",
    "dir",
    "drift",
    "experts",
    "layers",
    "name",
    "network",
    "once",
    "output",
    "patience",
    "per-layer",
    "placement",
    "rank",
    "record",
    "report",
    "run",
    "skew",
    "steps",
    "to",
    "trace",
    "weights",
];

/// An option of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommandOption<'a> {
    /// The option.
    pub(super) arg: &'a Arg,
    /// The name behind `--`.
    pub(super) name: &'a str,
    /// The number of command names in front of the command that defines the option. A global option of the
    /// program has the depth 0.
    pub(super) depth: usize,
}

/// Returns the name of an option, if a configuration may set it.
pub(super) fn configurable(arg: &Arg) -> Option<&str> {
    let prints = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    let selects = SELECTORS.contains(&arg.get_id().as_str());
    arg.get_long().filter(|_| !prints && !selects && !arg.is_positional())
}

/// Returns the command at `path`, without the program's name.
pub(super) fn find<'a>(program: &'a Command, path: &[&str]) -> Option<&'a Command> {
    path.iter().try_fold(program, |command, name| command.find_subcommand(name))
}

/// Returns the options of the command at `path`: its own, then the global ones of the commands above it.
pub(super) fn options_of<'a>(program: &'a Command, path: &[&str]) -> Vec<CommandOption<'a>> {
    let mut found: Vec<CommandOption> = Vec::new();
    for depth in (0..=path.len()).rev() {
        let Some(command) = find(program, &path[..depth]) else { continue };
        for arg in command.get_arguments() {
            let inherited = depth == path.len() || arg.is_global_set();
            let Some(name) = configurable(arg).filter(|_| inherited) else { continue };
            if !found.iter().any(|option| option.name == name) {
                found.push(CommandOption { arg, name, depth });
            }
        }
    }
    found
}

/// Returns the paths of all commands below the program, parents first.
pub(super) fn command_paths(program: &Command) -> Vec<Vec<&str>> {
    fn visit<'a>(command: &'a Command, path: &[&'a str], paths: &mut Vec<Vec<&'a str>>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let below = [path, &[sub.get_name()]].concat();
            paths.push(below.clone());
            visit(sub, &below, paths);
        }
    }
    let mut paths = Vec::new();
    visit(program, &[], &mut paths);
    paths
}

/// Returns the names of the options of the command at `path` and of its subcommands.
pub(super) fn names_below<'a>(program: &'a Command, path: &[&str]) -> Vec<&'a str> {
    let below = command_paths(program).into_iter().filter(|other| other.starts_with(path));
    let mut names: Vec<&str> =
        below.flat_map(|path| options_of(program, &path)).map(|option| option.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns the names of the options of every command.
pub(super) fn global_names(program: &Command) -> Vec<&str> {
    program.get_arguments().filter(|arg| arg.is_global_set()).filter_map(configurable).collect()
}

/// Returns whether an option takes values that are meant for several commands.
pub(super) fn is_shared(name: &str) -> bool {
    !COMMAND_SPECIFIC.contains(&name)
}

/// Returns whether the values of an option are secret. Files that hold secrets have names that are not.
pub(super) fn is_secret(name: &str) -> bool {
    let last = name.rsplit(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    ["token", "password", "secret", "key"].contains(&last.as_str())
}

/// Returns the known name that is most similar to `name`, if one is similar.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A quarter of the letters may be wrong. A longer name than any option is not worth the comparison.
    const MAX_LETTERS: usize = 100;
    if name.chars().count() > MAX_LETTERS {
        return None;
    }
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let similar = known.into_iter().map(|other| (distance(other), other));
    let (_, best) = similar.filter(|(distance, other)| *distance <= other.len().div_ceil(4)).min()?;
    Some(best)
}
