//! The options that a command line states explicitly, without defaults.
//!
//! In: the parsed arguments of clap. Out: [`StatedOptions`], a set of argument ids. A value alone does not
//! show whether the user stated it. Values of configuration files and variables are defaults, so they do not
//! count.

use clap::error::Error;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Ids of stated arguments in clap's form: `batch_tokens` for `--batch-tokens`.
///
/// It has to be the first field of its struct: fields take their values out of the parsed arguments in their
/// order.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatedOptions(Vec<String>);

impl StatedOptions {
    /// Returns whether the argument is stated.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|stated| stated == id)
    }

    /// Returns a set of only these ids.
    pub(crate) fn with_ids(ids: &[&str]) -> Self {
        Self(ids.iter().map(|&id| id.to_owned()).collect())
    }

    /// Returns the set without one id.
    pub(crate) fn without_id(&self, id: &str) -> Self {
        Self(self.0.iter().filter(|stated| *stated != id).cloned().collect())
    }
}

impl FromArgMatches for StatedOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let is_stated = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(is_stated).map(ToString::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for StatedOptions {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
