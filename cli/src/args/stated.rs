//! The options that a command line states itself, defaults aside.
//!
//! In: what clap parsed. Out: [`Explicit`], a set of argument ids. A value alone does not say whether somebody asked for it.

use clap::error::Error;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Ids of stated arguments, as clap has them: `batch_tokens` for `--batch-tokens`.
///
/// It has to be the first field of its struct: fields take their values out of what was parsed, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Explicit(Vec<String>);

impl Explicit {
    /// Returns whether the argument is stated.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|stated| stated == id)
    }

    /// Returns these ids alone.
    pub(crate) fn only(ids: &[&str]) -> Self {
        Self(ids.iter().map(|&id| id.to_owned()).collect())
    }

    /// Returns the set without one id.
    pub(crate) fn without(&self, id: &str) -> Self {
        Self(self.0.iter().filter(|stated| *stated != id).cloned().collect())
    }
}

impl FromArgMatches for Explicit {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let stated = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(stated).map(ToString::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Explicit {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
