//! Tables and JSON documents that several commands share.

pub(crate) mod cluster;
pub(crate) mod memory;
pub(crate) mod split_figures;
pub(crate) mod table;
pub(crate) mod units;
