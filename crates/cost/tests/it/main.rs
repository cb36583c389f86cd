//! Tests of the measured kernel times.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "import")]
#[path = "../../../../tests/support/repository.rs"]
mod repository;
#[cfg(feature = "import")]
#[path = "../../../../tests/support/skip.rs"]
mod skip_support;

mod builtin_operations;
mod builtin_tables;
mod malformed_databases;
#[cfg(feature = "import")]
mod malformed_packages;
#[cfg(feature = "import")]
mod measured_package;
#[cfg(feature = "import")]
mod package_writer;
mod published_effects;
mod published_exchanges;
mod rank_kernels;
#[cfg(feature = "import")]
mod synthetic_import;
#[cfg(feature = "import")]
mod synthetic_operations;
