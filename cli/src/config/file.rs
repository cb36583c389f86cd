//! The project file `evenkeel.toml`.
//!
//! In: a path, or a folder from which the file is searched upward. Out: a [`ProjectFile`] with one [`Entry`]
//! per key of the program's tables. Unknown tables and keys are errors that name the file, the line and the
//! nearest known name. The values are checked later, by the options that take them.

use super::options::{
    GLOBAL_TABLE, SERVICE_KEYS, SHARED_TABLES, command_paths, find, global_names, names_below, nearest,
};
use anyhow::{Context as _, bail};
use clap::Command;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The name of the project file.
pub(super) const FILE_NAME: &str = "evenkeel.toml";

/// The size limit of a project file. The service has the same limit.
const MAX_BYTES: u64 = 1 << 20;

/// Commands and tables of commands that a build without the feature `serve` does not have.
#[cfg(not(feature = "serve"))]
const ABSENT_COMMANDS: [&str; 4] = ["backtest", "replay", "serve", "top"];
#[cfg(feature = "serve")]
const ABSENT_COMMANDS: [&str; 0] = [];

/// A value of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileValue {
    Text(String),
    /// A number or a date, as it is written in the file.
    Literal(String),
    Boolean(bool),
    List(Vec<FileValue>),
    Table,
}

impl FileValue {
    /// Returns the type in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Literal(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Table => "a table",
        }
    }
}

impl From<&DeValue<'_>> for FileValue {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => {
                let decimal = i128::from_str_radix(number.as_str(), number.radix());
                Self::Literal(decimal.map_or_else(|_| number.to_string(), |decimal| decimal.to_string()))
            }
            DeValue::Float(number) => Self::Literal(number.as_str().to_owned()),
            DeValue::Boolean(truth) => Self::Boolean(*truth),
            DeValue::Datetime(date) => Self::Literal(date.to_string()),
            DeValue::Array(values) => Self::List(values.iter().map(|value| value.get_ref().into()).collect()),
            DeValue::Table(_) => Self::Table,
        }
    }
}

/// A key of one of the program's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The names of the table, as in `["plan", "check"]`.
    pub(super) table: Vec<String>,
    pub(super) key: String,
    pub(super) value: FileValue,
    pub(super) line: usize,
}

/// The program's part of the project file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectFile {
    pub(super) path: PathBuf,
    /// The name in messages.
    pub(super) name: PathBuf,
    pub(super) entries: Vec<Entry>,
}

impl ProjectFile {
    /// Reads and checks a file. A file of the working folder has a short name in messages.
    pub(super) fn read(
        path: &Path,
        working_folder: Option<&Path>,
        program: &Command,
    ) -> anyhow::Result<Self> {
        let is_here = working_folder.is_some() && path.parent() == working_folder;
        let name = path.file_name().filter(|_| is_here).map_or(path, Path::new);
        let text = read_text(path).with_context(|| name.display().to_string())?;
        Ok(Self { path: path.to_owned(), ..Self::parse(&text, name, program)? })
    }

    /// Checks the text of a file. Errors begin with `name`.
    pub(super) fn parse(text: &str, name: &Path, program: &Command) -> anyhow::Result<Self> {
        let table = DeTable::parse(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            anyhow::anyhow!(
                "{}:{}: {}",
                name.display(),
                line_of(text, start),
                error.message().replace('\n', "; ")
            )
        })?;
        let mut reader = TableReader { text, name, program, entries: Vec::new() };
        reader.read_file(table.get_ref())?;
        Ok(Self { path: name.to_owned(), name: name.to_owned(), entries: reader.entries })
    }

    /// Returns the entry of a table.
    pub(super) fn entry(&self, table: &[&str], key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key && entry.table == table)
    }
}

/// Returns the project file of `folder`: the first one in the folder or in a folder above it.
pub(super) fn search(folder: &Path) -> Option<PathBuf> {
    // A folder of that name is found too, so that reading it fails with the reason.
    folder.ancestors().map(|above| above.join(FILE_NAME)).find(|path| path.exists())
}

/// Reads a regular file of limited size.
fn read_text(path: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::FileTypeExt as _;
    // Opening a FIFO would wait for a writer, so the kind of the file is checked first.
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() {
        let found = match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        bail!("{found}, expected a regular file");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("larger than {MAX_BYTES} bytes, expected at most that many");
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = line_of(&String::from_utf8_lossy(error.as_bytes()), valid);
        anyhow::anyhow!("line {line} is not UTF-8, expected text")
    })
}

/// Returns the line of a byte, counted from 1.
fn line_of(text: &str, byte: usize) -> usize {
    text.get(..byte).unwrap_or(text).matches('\n').count() + 1
}

/// Returns the items of a table in the order of the file.
fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    let mut items: Vec<_> = table.iter().collect();
    items.sort_by_key(|(key, _)| key.span().start);
    items
}

/// Returns whether the program reads the table or key of this name at the top of the file.
pub(super) fn is_program_table(name: &str, program: &Command) -> bool {
    name == GLOBAL_TABLE
        || SHARED_TABLES.iter().any(|(table, _)| *table == name)
        || program.find_subcommand(name).is_some()
        || ABSENT_COMMANDS.contains(&name)
}

/// Collects the entries of the program's tables.
#[derive(Debug)]
struct TableReader<'a> {
    text: &'a str,
    name: &'a Path,
    program: &'a Command,
    entries: Vec<Entry>,
}

impl TableReader<'_> {
    fn read_file(&mut self, file: &DeTable) -> anyhow::Result<()> {
        for (key, value) in in_order(file) {
            let name = key.get_ref().as_ref();
            if SERVICE_KEYS.contains(&name) || ABSENT_COMMANDS.contains(&name) {
                continue;
            }
            let at = self.place(key);
            if !is_program_table(name, self.program) {
                return Err(self.unknown_table(name, &at, value.get_ref().is_table()));
            }
            let DeValue::Table(table) = value.get_ref() else {
                bail!("{at}: `{name}` is {}, expected a table", FileValue::from(value.get_ref()).kind());
            };
            let shared = SHARED_TABLES.iter().find(|(shared, _)| *shared == name);
            if name == GLOBAL_TABLE {
                let known = global_names(self.program);
                self.read_table(&[name], table, &known)?;
            } else if let Some((_, known)) = shared {
                self.read_table(&[name], table, known)?;
            } else {
                self.read_command(&[name], table)?;
            }
        }
        Ok(())
    }

    /// Reads the table of a command and those of its subcommands.
    fn read_command(&mut self, path: &[&str], table: &DeTable) -> anyhow::Result<()> {
        let program = self.program;
        let known = names_below(program, path);
        let command = find(program, path);
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            let sub = command.and_then(|command| command.find_subcommand(name));
            match value.get_ref() {
                DeValue::Table(_) if ABSENT_COMMANDS.contains(&name) => {}
                DeValue::Table(below) if sub.is_some() => {
                    self.read_command(&[path, &[name]].concat(), below)?;
                }
                value => self.read_key(path, key, value, &known)?,
            }
        }
        Ok(())
    }

    fn read_table(&mut self, path: &[&str], table: &DeTable, known: &[&str]) -> anyhow::Result<()> {
        for (key, value) in in_order(table) {
            self.read_key(path, key, value.get_ref(), known)?;
        }
        Ok(())
    }

    fn read_key(
        &mut self,
        path: &[&str],
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &DeValue,
        known: &[&str],
    ) -> anyhow::Result<()> {
        let name = key.get_ref().as_ref();
        let (at, table) = (self.place(key), path.join("."));
        if !known.contains(&name) {
            if value.is_table() {
                let subs: Vec<&str> = find(self.program, path)
                    .map(|command| command.get_subcommands().map(Command::get_name).collect())
                    .unwrap_or_default();
                let hint = nearest(name, subs).map(|sub| format!(": the nearest is [{table}.{sub}]"));
                bail!("{at}: unknown table [{table}.{name}]{}", hint.unwrap_or_default());
            }
            // A key that belongs to another table is more helpful than a similar one.
            let elsewhere =
                SHARED_TABLES.iter().find(|(_, keys)| keys.contains(&name)).map(|(table, _)| *table);
            let elsewhere = elsewhere.or(global_names(self.program).contains(&name).then_some(GLOBAL_TABLE));
            let hint = match (nearest(name, known.iter().copied()), elsewhere) {
                (_, Some(table)) => format!(": it belongs to [{table}]"),
                (Some(nearest), None) => format!(": the nearest is `{nearest}`"),
                (None, None) if known.is_empty() => ": the command has no options".into(),
                (None, None) => format!(": expected one of {}", known.join(", ")),
            };
            bail!("{at}: unknown field `{name}` in [{table}]{hint}");
        }
        let value = FileValue::from(value);
        if value == FileValue::Table {
            bail!("{at}: {table}.{name} is a table, expected a value");
        }
        let table = path.iter().map(|&part| part.to_owned()).collect();
        let line = line_of(self.text, key.span().start);
        self.entries.push(Entry { table, key: name.to_owned(), value, line });
        Ok(())
    }

    /// Returns the place of a key in messages.
    fn place(&self, key: &Spanned<std::borrow::Cow<'_, str>>) -> String {
        format!("{}:{}", self.name.display(), line_of(self.text, key.span().start))
    }

    fn unknown_table(&self, name: &str, at: &str, is_table: bool) -> anyhow::Error {
        let shared = SHARED_TABLES.iter().map(|(table, _)| *table);
        let commands = self.program.get_subcommands().map(Command::get_name).filter(|name| *name != "help");
        let tables: Vec<&str> = shared.chain([GLOBAL_TABLE]).chain(commands).collect();
        let known = tables.iter().copied().chain(SERVICE_KEYS);
        let what =
            if is_table { format!("unknown table [{name}]") } else { format!("unknown field `{name}`") };
        // An option at the top of the file belongs to a table.
        let holder = SHARED_TABLES.iter().find(|(_, keys)| keys.contains(&name)).map(|(table, _)| *table);
        let holder = holder.or(global_names(self.program).contains(&name).then_some(GLOBAL_TABLE));
        let commands = command_paths(self.program);
        let users = commands.iter().filter(|path| names_below(self.program, path).contains(&name));
        let holder = holder.map(str::to_owned).or(users.map(|path| path.join(".")).next());
        match (holder.filter(|_| !is_table), nearest(name, known)) {
            (Some(table), _) => anyhow::anyhow!("{at}: {what}: it belongs to [{table}]"),
            (None, Some(nearest)) if SERVICE_KEYS.contains(&nearest) => {
                anyhow::anyhow!("{at}: {what}: the nearest is `{nearest}`")
            }
            (None, Some(nearest)) => anyhow::anyhow!("{at}: {what}: the nearest is [{nearest}]"),
            (None, None) => anyhow::anyhow!("{at}: {what}: expected one of {}", tables.join(", ")),
        }
    }
}
