//! `evenkeel config show`: the effective values of all options, and where each comes from.

use super::lookup::{Origin, Sources};
use super::options::{CommandOption, command_paths, is_secret, options_of};
use super::variables::UnknownVariable;
use crate::render::table::render_table;
use clap::{ArgAction, Command};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The command names of options of every command.
const EVERY_COMMAND: &str = "every command";

/// The source of an effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The command line of this call.
    Flag,
    Configuration(Origin),
    Default,
}

/// The effective value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EffectiveValue {
    pub(super) command: String,
    pub(super) option: String,
    pub(super) value: Value,
    pub(super) source: Source,
}

/// Returns the effective values of the commands below `only`. `stated` holds the options of this call.
pub(super) fn effective_values(
    program: &Command,
    sources: Sources,
    stated: &[(String, Vec<OsString>)],
    only: &[&str],
) -> anyhow::Result<Vec<EffectiveValue>> {
    let mut values: Vec<EffectiveValue> = Vec::new();
    let value = |path: &[&str], option: CommandOption| -> anyhow::Result<EffectiveValue> {
        let flag = stated.iter().find(|(name, _)| option.depth == 0 && name == option.name);
        let default = || option.arg.get_default_values().iter().map(|value| value.as_os_str().to_owned());
        let (raw, source) = match (flag, sources.setting(path, option)?) {
            (Some((_, raw)), _) => (raw.clone(), Source::Flag),
            (None, Some(setting)) => (setting.values, Source::Configuration(setting.origin)),
            (None, None) => (default().collect(), Source::Default),
        };
        let command = if path.is_empty() { EVERY_COMMAND.into() } else { path.join(" ") };
        Ok(EffectiveValue { command, option: option.name.into(), value: document(option, &raw), source })
    };
    // Options of every command come first, and again where a command has its own value.
    for option in options_of(program, &[]) {
        values.push(value(&[], option)?);
    }
    for path in command_paths(program).iter().filter(|path| path.starts_with(only)) {
        for option in options_of(program, path) {
            let value = value(path, option)?;
            let general = |known: &EffectiveValue| {
                option.depth == 0
                    && (&known.option, &known.value, &known.source)
                        == (&value.option, &value.value, &value.source)
            };
            if !values.iter().filter(|known| known.command == EVERY_COMMAND).any(general) {
                values.push(value);
            }
        }
    }
    Ok(values)
}

/// Returns a value as JSON. Secrets are hidden.
fn document(option: CommandOption, raw: &[OsString]) -> Value {
    let text = |value: &OsString| value.display().to_string();
    match (option.arg.get_action(), raw) {
        (ArgAction::SetTrue | ArgAction::SetFalse, raw) => {
            let otherwise = matches!(option.arg.get_action(), ArgAction::SetFalse);
            json!(raw.first().map_or(otherwise, |value| value == "true"))
        }
        (_, []) => Value::Null,
        _ if is_secret(option.name) => json!("set"),
        (ArgAction::Append, raw) => {
            let parts = raw.iter().flat_map(|value| {
                let text = text(value);
                match option.arg.get_value_delimiter() {
                    Some(delimiter) => text.split(delimiter).map(str::to_owned).collect(),
                    None => vec![text],
                }
            });
            json!(parts.collect::<Vec<_>>())
        }
        (_, [only]) => json!(text(only)),
        (_, several) => json!(text(&several.join(OsStr::new(",")))),
    }
}

/// Returns a value in a table.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

impl Source {
    fn text(&self) -> String {
        match self {
            Self::Flag => "flag".into(),
            Self::Configuration(Origin::Variable(name)) => name.clone(),
            Self::Configuration(Origin::File { name, line, .. }) => format!("{}:{line}", name.display()),
            Self::Default => "default".into(),
        }
    }

    fn document(&self) -> Value {
        match self {
            Self::Flag => json!({ "kind": "flag" }),
            Self::Configuration(Origin::Variable(name)) => json!({ "kind": "environment", "variable": name }),
            Self::Configuration(Origin::File { name, line, key }) => {
                json!({ "kind": "file", "file": name.display().to_string(), "line": line, "key": key })
            }
            Self::Default => json!({ "kind": "default" }),
        }
    }
}

/// Returns the tables of `config show`.
pub(super) fn render(
    values: &[EffectiveValue],
    unknown: &[UnknownVariable],
    file: Option<&Path>,
    all: bool,
) -> String {
    let mut text = match file {
        Some(file) => format!("file: {}\n", file.display()),
        None => "file: none\n".into(),
    };
    // Commands with the same value of an option share a row.
    let mut rows: Vec<(Vec<String>, &EffectiveValue)> = Vec::new();
    for value in values.iter().filter(|value| all || value.source != Source::Default) {
        let same = |(_, other): &&mut (Vec<String>, &EffectiveValue)| {
            // A list of one value looks like the value.
            let same_text = shown(&other.value) == shown(&value.value);
            same_text && (&other.option, &other.source) == (&value.option, &value.source)
        };
        match rows.iter_mut().find(same) {
            Some((commands, _)) if !all => commands.push(value.command.clone()),
            _ => rows.push((vec![value.command.clone()], value)),
        }
    }
    if rows.is_empty() {
        text += "every option has its built-in default\n";
    } else {
        let row = |(commands, value): (Vec<String>, &EffectiveValue)| {
            vec![value.option.clone(), shown(&value.value), value.source.text(), commands.join(", ")]
        };
        text +=
            &render_table(&["option", "value", "source", "commands"], rows.into_iter().map(row).collect(), 4);
    }
    for UnknownVariable { name, suggestion } in unknown {
        let hint = suggestion.as_ref().map(|suggestion| format!("; the nearest is {suggestion}"));
        text += &format!("ignored: no option reads {name}{}\n", hint.unwrap_or_default());
    }
    text
}

/// Returns the document of `config show --json`.
pub(super) fn render_document(
    values: &[EffectiveValue],
    unknown: &[UnknownVariable],
    file: Option<&Path>,
    all: bool,
) -> Value {
    let values = values.iter().filter(|value| all || value.source != Source::Default).map(|value| {
        json!({
            "command": value.command,
            "option": value.option,
            "value": value.value,
            "source": value.source.document(),
        })
    });
    let unknown = unknown
        .iter()
        .map(|UnknownVariable { name, suggestion }| json!({ "name": name, "suggestion": suggestion }));
    json!({
        "file": file.map(|file| file.display().to_string()),
        "values": values.collect::<Vec<_>>(),
        "unknown_variables": unknown.collect::<Vec<_>>(),
    })
}
