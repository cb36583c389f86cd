//! Values of options from the environment and the project file.
//!
//! In: an option of a command. Out: its [`Setting`] from the source with the highest precedence: variables
//! before the file, and names for fewer commands before names for more. A setting is checked by the option's
//! own value parser.

use super::file::{FileValue, ProjectFile};
use super::options::{CommandOption, GLOBAL_TABLE, SHARED_TABLES, is_secret, is_shared};
use super::variables::variables_of;
use anyhow::bail;
use clap::builder::ValueRange;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// An environment variable.
    Variable(String),
    /// A line of the project file.
    File { name: PathBuf, line: usize, key: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => f.write_str(name),
            Self::File { name, line, key } => write!(f, "{}:{line}: {key}", name.display()),
        }
    }
}

/// A value of an option from the environment or the project file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The id of the option in clap.
    pub(super) id: String,
    /// The name behind `--`.
    pub(super) name: String,
    /// The depth of the command that defines the option.
    pub(super) depth: usize,
    pub(super) values: Vec<OsString>,
    /// The arguments that state the same on a command line. They are empty for a flag that is off.
    pub(super) tokens: Vec<OsString>,
    pub(super) origin: Origin,
    /// The precedence. Lower ranks go first.
    pub(super) rank: usize,
}

/// The rank of the first table of the file. Variables have lower ranks.
const FILE_RANK: usize = 100;

/// The sources of values.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// Returns a variable of the environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) file: Option<&'a ProjectFile>,
}

impl Sources<'_> {
    /// Returns the checked setting of an option of the command at `path`.
    pub(super) fn setting(&self, path: &[&str], option: CommandOption) -> anyhow::Result<Option<Setting>> {
        let Some((values, origin, rank)) = self.values(path, option)? else { return Ok(None) };
        check(option.arg, &values, &origin)?;
        let tokens = tokens(option, &values);
        let (id, name) = (option.arg.get_id().to_string(), option.name.to_owned());
        Ok(Some(Setting { id, name, depth: option.depth, values, tokens, origin, rank }))
    }

    fn values(
        &self,
        path: &[&str],
        option: CommandOption,
    ) -> anyhow::Result<Option<(Vec<OsString>, Origin, usize)>> {
        for (rank, name) in variables_of(path, option.name).into_iter().enumerate() {
            if let Some(value) = (self.variable)(&name).filter(|value| !value.is_empty()) {
                let origin = Origin::Variable(name);
                let values = variable_values(option.arg, value, &origin)?;
                return Ok(Some((values, origin, rank)));
            }
        }
        let Some(file) = self.file else { return Ok(None) };
        for (rank, table) in tables_of(path, option).into_iter().enumerate() {
            if let Some(entry) = file.entry(&table, option.name) {
                let key = format!("{}.{}", table.join("."), entry.key);
                let origin = Origin::File { name: file.name.clone(), line: entry.line, key };
                let folder = file.path.parent().unwrap_or(Path::new(""));
                let values = file_values(option.arg, &entry.value, &origin)?;
                let values = values.into_iter().map(|value| absolute(option.arg, value, folder)).collect();
                return Ok(Some((values, origin, FILE_RANK + rank)));
            }
        }
        Ok(None)
    }
}

/// Returns the tables that may hold an option of the command at `path`, in the order of their precedence.
fn tables_of<'a>(path: &[&'a str], option: CommandOption) -> Vec<Vec<&'a str>> {
    let mut tables: Vec<Vec<&str>> = (1..=path.len()).rev().map(|depth| path[..depth].to_vec()).collect();
    if is_shared(option.name) {
        let shared = SHARED_TABLES.iter().filter(|(_, keys)| keys.contains(&option.name));
        tables.extend(shared.map(|(table, _)| vec![*table]));
    }
    if option.depth == 0 {
        tables.push(vec![GLOBAL_TABLE]);
    }
    tables
}

/// Returns the values of a variable. Options that may be repeated take several, separated by commas.
fn variable_values(arg: &Arg, value: OsString, origin: &Origin) -> anyhow::Result<Vec<OsString>> {
    let text = value.to_str();
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => match text {
            Some("true" | "1") => Ok(vec!["true".into()]),
            Some("false" | "0") => Ok(vec!["false".into()]),
            _ => bail!("{origin}: found `{}`, expected true, false, 1 or 0", value.display()),
        },
        ArgAction::Count => count(text, origin),
        // clap divides the values of an option with a delimiter.
        _ if arg.get_value_delimiter().is_some() || !takes_several(arg) => Ok(vec![value]),
        _ => match text {
            Some(text) => Ok(text.split(',').map(OsString::from).collect()),
            None => bail!("{origin}: found bytes that are not UTF-8, expected a list of text"),
        },
    }
}

/// Returns the values of a key of the file.
fn file_values(arg: &Arg, value: &FileValue, origin: &Origin) -> anyhow::Result<Vec<OsString>> {
    let (scalar, kind) = (
        |value: &FileValue| match value {
            FileValue::Text(text) | FileValue::Literal(text) => Some(OsString::from(text)),
            FileValue::Boolean(truth) => Some(OsString::from(truth.to_string())),
            FileValue::List(_) | FileValue::Table => None,
        },
        value.kind(),
    );
    match (arg.get_action(), value) {
        (ArgAction::SetTrue | ArgAction::SetFalse, FileValue::Boolean(truth)) => {
            Ok(vec![truth.to_string().into()])
        }
        (ArgAction::SetTrue | ArgAction::SetFalse, _) => {
            bail!("{origin}: found {kind}, expected true or false")
        }
        (ArgAction::Count, FileValue::Literal(text)) => count(Some(text), origin),
        (ArgAction::Count, FileValue::Boolean(truth)) => Ok(vec![u8::from(*truth).to_string().into()]),
        (ArgAction::Count, _) => bail!("{origin}: found {kind}, expected a number from 0 to 255"),
        (_, FileValue::List(list)) if takes_several(arg) => {
            if list.is_empty() {
                bail!("{origin}: found an empty list, expected at least one value");
            }
            let part = |value: &FileValue| {
                let found = value.kind();
                scalar(value)
                    .ok_or_else(|| anyhow::anyhow!("{origin}: found {found} in a list, expected a value"))
            };
            list.iter().map(part).collect()
        }
        (_, value) => match scalar(value) {
            Some(value) => Ok(vec![value]),
            None => bail!("{origin}: found {kind}, expected one value"),
        },
    }
}

/// Returns the number of occurrences of a flag that may be repeated.
fn count(text: Option<&str>, origin: &Origin) -> anyhow::Result<Vec<OsString>> {
    let text = text.unwrap_or_default();
    let times = match text {
        "true" => Some(1),
        "false" => Some(0),
        number => number.parse::<u8>().ok(),
    };
    match times {
        Some(times) => Ok(vec![times.to_string().into()]),
        None => bail!("{origin}: found `{text}`, expected a number from 0 to 255"),
    }
}

/// Returns whether an option takes more than one value.
fn takes_several(arg: &Arg) -> bool {
    let many = arg.get_num_args().is_some_and(|range| range.max_values() > 1);
    many || matches!(arg.get_action(), ArgAction::Append)
}

/// Returns a path of the file relative to the folder of the file. Other values stay as they are.
fn absolute(arg: &Arg, value: OsString, folder: &Path) -> OsString {
    let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    // `-` is stdout.
    if is_path && value != "-" { folder.join(value).into_os_string() } else { value }
}

/// Returns the arguments that state the values on a command line.
fn tokens(option: CommandOption, values: &[OsString]) -> Vec<OsString> {
    let flag = OsString::from(format!("--{}", option.name));
    let with = |value: &OsStr| [&flag, OsStr::new("="), value].into_iter().collect::<OsString>();
    let first = values.first().and_then(|value| value.to_str()).unwrap_or_default();
    match option.arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => {
            // The flag of a `SetFalse` option turns it off.
            let states = matches!(option.arg.get_action(), ArgAction::SetTrue).to_string();
            if first == states { vec![flag] } else { vec![] }
        }
        ArgAction::Count => vec![flag; first.parse::<u8>().unwrap_or_default().into()],
        ArgAction::Append => values.iter().map(|value| with(value)).collect(),
        _ => match (values, option.arg.get_value_delimiter()) {
            ([value], _) => vec![with(value)],
            (values, Some(delimiter)) => vec![with(&values.join(OsStr::new(&delimiter.to_string())))],
            (values, None) => [&[flag][..], values].concat(),
        },
    }
}

/// Checks values with the option's own value parser.
fn check(arg: &Arg, values: &[OsString], origin: &Origin) -> anyhow::Result<()> {
    if !arg.get_action().takes_values() {
        return Ok(());
    }
    // Relations to other options do not matter here, so the probe has a new argument.
    let mut probe = Arg::new("value")
        .long("value")
        .action(arg.get_action().clone())
        .value_parser(arg.get_value_parser().clone())
        .allow_hyphen_values(true);
    if let Some(range) = arg.get_num_args() {
        // An option that may stand without a value takes one from a configuration.
        probe = probe.num_args(ValueRange::new(range.min_values().max(1)..=range.max_values().max(1)));
    }
    if let Some(delimiter) = arg.get_value_delimiter() {
        probe = probe.value_delimiter(delimiter);
    }
    let option = CommandOption { arg: &probe, name: "value", depth: 0 };
    let command = Command::new("probe").no_binary_name(true).disable_help_flag(true).arg(&probe);
    let Err(error) = command.try_get_matches_from(tokens(option, values)) else { return Ok(()) };

    let context = |kind| error.get(kind).map(ToString::to_string).filter(|text| !text.is_empty());
    let all = || values.join(OsStr::new(",")).display().to_string();
    let found = context(ContextKind::InvalidValue).unwrap_or_else(all);
    let name = arg.get_long().unwrap_or_default();
    let found = if is_secret(name) { "a secret".into() } else { format!("`{found}`") };
    let expected = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(valid)) if !valid.is_empty() => format!("one of {}", valid.join(", ")),
        _ => {
            let names: Vec<&str> =
                arg.get_value_names().unwrap_or_default().iter().map(clap::builder::Str::as_str).collect();
            if names.is_empty() {
                format!("a value of --{name}")
            } else {
                format!("{} of --{name}", names.join(" "))
            }
        }
    };
    // The reason may contain the value.
    let reason = match error.kind() {
        ErrorKind::ValueValidation if !is_secret(name) => {
            std::error::Error::source(&error).map(|source| format!(": {source}"))
        }
        ErrorKind::InvalidUtf8 => Some(": not UTF-8".into()),
        ErrorKind::WrongNumberOfValues | ErrorKind::TooManyValues | ErrorKind::TooFewValues => {
            Some(format!(": {} values", values.len()))
        }
        _ => None,
    };
    bail!("{origin}: found {found}, expected {expected}{}", reason.unwrap_or_default())
}
