//! What a command says: results on stdout, everything else on stderr.

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, Write as _};
use std::path::Path;

/// Where and how much to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    verbose: bool,
}

impl Output {
    pub(crate) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    /// Says nothing on the side.
    #[cfg(any(feature = "mpi", feature = "cuda"))]
    pub(crate) fn quiet(self) -> Self {
        Self { json: true, ..self }
    }

    /// Whether the user wants a document, not tables.
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// Whether the user asked for more.
    pub(crate) fn verbose(self) -> bool {
        self.verbose
    }

    /// Something worth knowing, on stderr; documents carry their own notices.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "note: {text}");
        }
    }

    /// The first few of many notices; all of them with `--verbose`.
    pub(crate) fn notices(self, notices: &[String]) {
        const FEW: usize = 5;
        let shown = if self.verbose { notices.len() } else { notices.len().min(FEW) };
        notices[..shown].iter().for_each(|notice| self.note(notice));
        if shown < notices.len() {
            self.note(&format!("{} more notices (-v shows them)", notices.len() - shown));
        }
    }
}

/// Result text on stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A result document on stdout.
pub(crate) fn document(document: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    print(&text)
}

/// The one message of a failed command: the error and what led to it.
pub(crate) fn error(error: &anyhow::Error) {
    // In one piece: other processes may write to the same terminal.
    let line = format!("error: {}\n", evenkeel::in_words(error.as_ref()));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A failure that has been told already.
#[cfg(any(feature = "mpi", feature = "cuda"))]
#[derive(Debug)]
pub(crate) struct Said;

#[cfg(any(feature = "mpi", feature = "cuda"))]
impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("see above")
    }
}

#[cfg(any(feature = "mpi", feature = "cuda"))]
impl std::error::Error for Said {}

/// Whether a failure has been told already.
pub(crate) fn is_said(error: &anyhow::Error) -> bool {
    #[cfg(any(feature = "mpi", feature = "cuda"))]
    return error.is::<Said>();
    #[cfg(not(any(feature = "mpi", feature = "cuda")))]
    {
        let _ = error;
        false
    }
}

/// Writes a result file, making its folder, or says which file could not be written.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return print(text);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make folder {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether whoever read our output stopped reading (`evenkeel ... | head`).
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A plain table with right-aligned numbers: the first `text_columns` columns are left-aligned.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, text_columns: usize) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A bar on stderr that shows itself only on a terminal and when work takes longer than a moment.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn bytes() -> Self {
        Self::styled("reading {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    pub(crate) fn layers() -> Self {
        Self::styled("layers  {bar:30} {pos}/{len} {eta}")
    }

    fn styled(template: &str) -> Self {
        // Ten draws a second at most; hidden where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    pub(crate) fn steps() -> Self {
        Self::styled("making  {bar:30} step {pos}/{len} {eta}")
    }

    pub(crate) fn running() -> Self {
        Self::styled("running {bar:30} step {pos}/{len} {eta}")
    }
}

#[cfg(feature = "serve")]
impl Bar {
    pub(crate) fn posting() -> Self {
        Self::styled("posting {bar:30} step {pos}/{len} {per_sec} {eta}")
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl evenkeel::trace::Progress for Bar {
    fn bytes(&self, done: u64, total: u64) {
        self.set(done, total);
    }
}

impl evenkeel::simulate::Progress for Bar {
    fn layers(&self, done: usize, total: usize) {
        self.set(done as u64, total as u64);
    }
}

impl evenkeel::exec::run::Progress for Bar {
    fn steps(&self, done: usize, total: usize) {
        self.set(done as u64, total as u64);
    }
}
