//! The network between ranks, as an argument.
//!
//! In: the name of a system, a pair of links, or a file of `evenkeel calibrate network`, optionally followed
//! by settings. Out: a [`Network`].

use evenkeel::cluster::{Network, NetworkError};
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

/// A preset, or a network that was read from a file.
#[derive(Debug, Clone)]
pub(crate) struct NetworkSource(pub(crate) Network);

/// Error of text that names no network.
#[derive(Debug, Error)]
pub(crate) enum NetworkSourceError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("{file}: {error}")]
    Unreadable { file: String, error: std::io::Error },
    #[error("{file}: {error}")]
    File { file: String, error: NetworkError },
}

impl FromStr for NetworkSource {
    type Err = NetworkSourceError;

    fn from_str(text: &str) -> Result<Self, NetworkSourceError> {
        let (file, settings) = match text.split_once(',') {
            Some((file, settings)) => (file, Some(settings)),
            None => (text, None),
        };
        if !(Path::new(file).extension().is_some_and(|end| end == "json") || file.contains('/')) {
            return Ok(Self(text.parse()?));
        }
        let text = std::fs::read_to_string(file)
            .map_err(|error| NetworkSourceError::Unreadable { file: file.into(), error })?;
        let network = Network::from_json(&text)
            .map_err(|error| NetworkSourceError::File { file: file.into(), error })?;
        let network = match settings {
            Some(settings) => network.with_settings(settings)?,
            None => network,
        };
        Ok(Self(network))
    }
}
