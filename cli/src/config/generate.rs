//! `evenkeel completions` and `evenkeel man`: files generated from the tree of commands.

use super::options::{command_paths, find};
use crate::output::print_text;
use anyhow::{Context as _, bail};
use clap::Command;
use clap_complete::Shell;
use std::path::PathBuf;

/// Print the script that completes commands and options in a shell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  evenkeel completions bash > ~/.local/share/bash-completion/completions/evenkeel\n  \
                  evenkeel completions zsh > ~/.zfunc/_evenkeel\n  \
                  evenkeel completions fish > ~/.config/fish/completions/evenkeel.fish"
)]
pub(crate) struct CompletionsArgs {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print a manual page, or write the pages of all commands.
///
/// Without COMMAND the page is that of the program.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  evenkeel man plan | man -l -\n  evenkeel man --dir ~/.local/share/man/man1"
)]
pub(crate) struct ManArgs {
    /// Command whose page is printed, as in `trace inspect`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// Prints the completion script.
pub(super) fn print_completions(args: &CompletionsArgs, mut program: Command) -> anyhow::Result<()> {
    let (mut script, name) = (Vec::new(), program.get_name().to_owned());
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    print_text(&String::from_utf8(script)?)
}

/// Prints one manual page, or writes all.
pub(super) fn print_pages(args: &ManArgs, mut program: Command) -> anyhow::Result<()> {
    program.build();
    let Some(folder) = &args.dir else {
        let path: Vec<&str> = args.command.iter().map(String::as_str).collect();
        if find(&program, &path).is_none() {
            let known: Vec<String> = command_paths(&program).iter().map(|path| path.join(" ")).collect();
            bail!("no command `{}`: expected one of {}", path.join(" "), known.join(", "));
        }
        return print_text(&page(&program, &path)?);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make folder {}", folder.display()))?;
    for path in [vec![]].into_iter().chain(command_paths(&program)) {
        let name = [&[program.get_name()], path.as_slice()].concat().join("-");
        let file = folder.join(format!("{name}.1"));
        crate::output::write_file(&file, &page(&program, &path)?)?;
    }
    Ok(())
}

/// Returns the manual page of the command at `path`.
fn page(program: &Command, path: &[&str]) -> anyhow::Result<String> {
    let command = find(program, path).context("no such command")?;
    let name = [&[program.get_name()], path].concat().join("-");
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().display_name(name)).source(source).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
