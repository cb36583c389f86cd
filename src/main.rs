//! The `evenkeel` command; `cli` holds one file per subcommand.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
