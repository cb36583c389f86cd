//! The folder of the repository, for tests of any of its packages.

use std::path::{Path, PathBuf};

/// Returns the top folder of the repository: the nearest folder above the package that contains `.ci`.
/// Outside the repository it is the package's folder.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join(".ci").is_dir()).unwrap_or(package).to_owned()
}
