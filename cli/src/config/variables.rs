//! Environment variables of options.
//!
//! The option `--max-moves` has the variable `EVENKEEL_MAX_MOVES` for all commands, and
//! `EVENKEEL_PLAN_MAX_MOVES` for `evenkeel plan` and its subcommands. The variable with more names has
//! precedence.

use super::options::{SELECTORS, command_paths, configurable, is_shared, nearest, options_of};
use clap::{Arg, Command};
use std::collections::BTreeSet;

/// The beginning of every variable.
pub(super) const PREFIX: &str = "EVENKEEL_";

/// Variables that other parts of evenkeel read. No option takes its value from them.
pub(super) const OTHER_VARIABLES: [&str; 4] =
    // Compiled kernels; plug-ins for serving stacks (docs/interop.md); the token of clients of the service.
    ["EVENKEEL_CACHE", "EVENKEEL_POLICY", "EVENKEEL_SPLIT", "EVENKEEL_TOKEN"];

/// Returns the variable of an option for the commands at `path` and below.
fn variable(path: &[&str], name: &str) -> String {
    let words = [path, &[name]].concat().join("_");
    format!("{PREFIX}{}", words.replace('-', "_").to_ascii_uppercase())
}

/// Returns the variables of an option of the command at `path`, in the order of their precedence.
pub(super) fn variables_of(path: &[&str], name: &str) -> Vec<String> {
    let mut variables: Vec<String> =
        (1..=path.len()).rev().map(|depth| variable(&path[..depth], name)).collect();
    let general = variable(&[], name);
    if is_shared(name) && !OTHER_VARIABLES.contains(&general.as_str()) {
        variables.push(general);
    }
    variables
}

/// Returns the variable of an option that help texts name: the most general one.
pub(super) fn documented(path: &[&str], name: &str) -> String {
    variables_of(path, name).pop().unwrap_or_else(|| variable(path, name))
}

/// Returns the command with the variable of every option in its long help.
pub(super) fn describe(program: Command) -> Command {
    describe_below(program, &[])
}

fn describe_below(command: Command, path: &[String]) -> Command {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    let mut command = command.mut_args(|arg| with_variable(arg, &parts));
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        let below = [path, std::slice::from_ref(&name)].concat();
        command = command.mut_subcommand(name, |sub| describe_below(sub, &below));
    }
    command
}

fn with_variable(arg: Arg, path: &[&str]) -> Arg {
    let selects = SELECTORS.contains(&arg.get_id().as_str());
    let Some(name) = configurable(&arg).or(arg.get_long().filter(|_| selects)) else { return arg };
    let variable = documented(path, name);
    let long = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    // Without a short help, clap would show the long one in its place.
    let short = arg.get_help().map_or_else(|| long.clone(), ToString::to_string);
    arg.help(short).long_help(format!("{long}\n\n[env: {variable}]"))
}

/// Returns all variables that options read.
pub(super) fn known(program: &Command) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = ["config", "no-config"].map(|name| variable(&[], name)).into();
    for path in command_paths(program) {
        let options = options_of(program, &path);
        known.extend(options.iter().flat_map(|option| variables_of(&path, option.name)));
    }
    known
}

/// A variable that no option reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnknownVariable {
    pub(super) name: String,
    /// The most similar variable of an option.
    pub(super) suggestion: Option<String>,
}

/// Returns the variables with our prefix that neither an option nor another part of evenkeel reads.
pub(super) fn unknown(program: &Command, names: impl IntoIterator<Item = String>) -> Vec<UnknownVariable> {
    let known = known(program);
    let ours = names.into_iter().filter(|name| name.starts_with(PREFIX));
    let mut unknown: Vec<UnknownVariable> = ours
        .filter(|name| !known.contains(name) && !OTHER_VARIABLES.contains(&name.as_str()))
        .map(|name| {
            // Only the part behind the prefix counts, since all names share the prefix.
            let part = |name: &str| name[PREFIX.len()..].to_owned();
            let all = known.iter().map(String::as_str).chain(OTHER_VARIABLES);
            let parts: Vec<String> = all.map(part).collect();
            let nearest = nearest(&part(&name), parts.iter().map(String::as_str));
            let suggestion = nearest.map(|nearest| format!("{PREFIX}{nearest}"));
            UnknownVariable { name, suggestion }
        })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown
}
