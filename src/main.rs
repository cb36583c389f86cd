//! The `evenkeel` command.
use evenkeel::cli;

fn main() -> anyhow::Result<()> {
    cli::main()
}
