//! Output of a command: results on stdout, everything else on stderr.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, Write as _};
use std::path::Path;

/// Format and amount of the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    verbose: bool,
}

impl Output {
    pub(crate) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    /// Returns an output without notes.
    #[cfg(any(feature = "mpi", feature = "cuda"))]
    pub(crate) fn without_notes(self) -> Self {
        Self { json: true, ..self }
    }

    /// Returns whether the user requested a document instead of tables.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Returns whether the user requested details.
    pub(crate) fn is_verbose(self) -> bool {
        self.verbose
    }

    /// Prints a note on stderr, unless the result is a document, which carries its own notices.
    pub(crate) fn print_note(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "note: {}", escape_control(text));
        }
    }

    /// Prints the first few of many notices, or all with `--verbose`.
    pub(crate) fn print_notices(self, notices: &[String]) {
        const MAX_NOTICES: usize = 5;
        let shown = if self.verbose { notices.len() } else { notices.len().min(MAX_NOTICES) };
        notices[..shown].iter().for_each(|notice| self.print_note(notice));
        if shown < notices.len() {
            self.print_note(&format!("{} more notices (-v shows them)", notices.len() - shown));
        }
    }
}

/// Replaces control characters by their escapes, except line ends and tabs. Names and labels from files and
/// servers may contain them, and a terminal would obey them.
pub(crate) fn escape_control(text: &str) -> Cow<'_, str> {
    // The last ones change the direction of text, so that it appears as a different text.
    let is_harmful = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().flat_map(|c| if is_harmful(c) { c.escape_unicode().collect() } else { vec![c] });
    Cow::Owned(shown.collect())
}

/// Prints result text for people on stdout.
pub(crate) fn print_text(text: &str) -> anyhow::Result<()> {
    print_verbatim(&escape_control(text))
}

/// Prints the content of a file on stdout.
fn print_verbatim(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a result document on stdout.
pub(crate) fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    print_verbatim(&pretty_json(document)?)
}

/// Returns a document as indented text that ends with a line end.
pub(crate) fn pretty_json(document: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

/// Prints the single message of a failed command: the error and its causes.
pub(crate) fn print_error(error: &anyhow::Error) {
    // One write, since other processes may write to the same terminal.
    let line = format!("error: {}\n", escape_control(&evenkeel::error_chain(error.as_ref())));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A failure that has already been reported.
#[cfg(any(feature = "mpi", feature = "cuda"))]
#[derive(Debug)]
pub(crate) struct ReportedError;

#[cfg(any(feature = "mpi", feature = "cuda"))]
impl std::fmt::Display for ReportedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("see above")
    }
}

#[cfg(any(feature = "mpi", feature = "cuda"))]
impl std::error::Error for ReportedError {}

/// Returns whether a failure has already been reported.
pub(crate) fn is_reported(error: &anyhow::Error) -> bool {
    #[cfg(any(feature = "mpi", feature = "cuda"))]
    return error.is::<ReportedError>();
    #[cfg(not(any(feature = "mpi", feature = "cuda")))]
    {
        let _ = error;
        false
    }
}

/// Writes a complete result file or none, and creates its folder. The error names the file.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    if is_stdout(path) {
        return print_verbatim(text);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create folder {}", folder.display()))?;
    }
    evenkeel::write_atomic(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns whether a path stands for stdout.
pub(crate) fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Returns whether the reader of our output stopped reading (`evenkeel ... | head`).
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns the command line for reports, with the options of the environment and the project file.
pub(crate) fn command_line() -> String {
    let quoted = |arg: String| if arg.contains(char::is_whitespace) { format!("'{arg}'") } else { arg };
    let rest: Vec<String> = crate::config::effective_args()
        .into_iter()
        .skip(1)
        .map(|arg| quoted(arg.to_string_lossy().into_owned()))
        .collect();
    format!("evenkeel {}", rest.join(" "))
}

/// A progress bar on stderr. It is visible only on a terminal, and only if the work takes longer than a
/// moment.
#[derive(Debug)]
pub(crate) struct StderrBar(ProgressBar);

impl StderrBar {
    pub(crate) fn for_reading() -> Self {
        Self::with_template("reading {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    pub(crate) fn for_layers() -> Self {
        Self::with_template("layers  {bar:30} {pos}/{len} {eta}")
    }

    pub(crate) fn for_placements() -> Self {
        Self::with_template("placing {bar:30} {pos}/{len} {eta}")
    }

    pub(crate) fn for_synthesis() -> Self {
        Self::with_template("writing {bar:30} step {pos}/{len} {eta}")
    }

    pub(crate) fn for_execution() -> Self {
        Self::with_template("running {bar:30} step {pos}/{len} {eta}")
    }

    pub(crate) fn for_kernels() -> Self {
        Self::with_template("kernels {bar:30} {pos}/{len} {eta}")
    }

    pub(crate) fn for_corpora() -> Self {
        Self::with_template("corpora {bar:30} {pos}/{len} {eta}")
    }

    /// Reports that `done` of `total` items of a stage are finished.
    pub(crate) fn report_done(&self, done: usize, total: usize) {
        self.set_position(done as u64, total as u64);
    }

    #[cfg(feature = "serve")]
    pub(crate) fn for_posting() -> Self {
        Self::with_template("posting {bar:30} step {pos}/{len} {per_sec} {eta}")
    }

    fn with_template(template: &str) -> Self {
        // At most ten updates per second; hidden if stderr is no terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn set_position(&self, position: u64, length: u64) {
        self.0.set_length(length);
        self.0.set_position(position);
    }
}

impl Drop for StderrBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl evenkeel::trace::ReadProgress for StderrBar {
    fn report_bytes(&self, done: u64, total: u64) {
        self.set_position(done, total);
    }
}

impl evenkeel::evaluate::Progress for StderrBar {
    fn report_layers(&self, done: usize, total: usize) {
        self.set_position(done as u64, total as u64);
    }
}

impl evenkeel_exec::run::StepProgress for StderrBar {
    fn report_steps(&self, done: usize, total: usize) {
        self.set_position(done as u64, total as u64);
    }
}
