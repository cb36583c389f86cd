//! The commands: one module per group, one file per subcommand.

pub(crate) mod advise;
pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod costs;
pub(crate) mod plan;
pub(crate) mod run;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod simulate;
#[cfg(feature = "serve")]
pub(crate) mod top;
pub(crate) mod trace;
