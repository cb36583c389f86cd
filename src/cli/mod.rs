//! The command line, one file per subcommand.

pub mod trace_args;

/// Runs the command.
///
/// # Errors
/// Whatever the subcommand reports.
pub fn main() -> anyhow::Result<()> {
    Ok(())
}
