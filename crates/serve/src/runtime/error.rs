//! Errors of starting a service and of creating a model.

use crate::config::{ConfigError, InvalidName};
use crate::controller::config::SpecError;
use crate::controller::state::PhaseError;
use crate::store::error::StateStoreError;
use std::net::SocketAddr;
use thiserror::Error;

/// Error of starting a service, or of restoring one of its models.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StateStoreError),
    /// A stored model is inconsistent.
    #[error("the store's model {model}: {source}")]
    Restore {
        /// The model.
        model: String,
        /// The inconsistency.
        source: Box<PhaseError>,
    },
    /// A stored model has another shape than in the configuration.
    #[error(
        "[models.{model}] differs from the stored shape ({stored}): the shape of a model cannot change; expected another name, \
         or another --data folder"
    )]
    Reshaped {
        /// The model.
        model: String,
        /// The stored shape, as JSON.
        stored: String,
    },
    /// The address is in use, or belongs to another machine.
    #[error("cannot listen on {address}: {source}{}", free_port(.address, .source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A thread or socket could not be created.
    #[error("{what}: {source}")]
    Io {
        /// The failed operation.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Returns the advice for a port that is in use.
fn free_port(address: &SocketAddr, source: &std::io::Error) -> String {
    if source.kind() != std::io::ErrorKind::AddrInUse {
        return String::new();
    }
    format!("; --listen {} selects a free port", SocketAddr::new(address.ip(), 0))
}

/// Error of creating a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The configuration has invalid options for the model.
    #[error("{0}")]
    Config(Box<ConfigError>),
    /// The shape is invalid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The model exists with another shape.
    #[error("the model exists with another shape: {0}")]
    Reshaped(String),
    /// The limit on models is reached.
    #[error("the limit of {0} models is reached")]
    TooMany(usize),
    /// The planning window of its steps would take too much memory.
    #[error(
        "the planning windows of all phases, this one with {layers} layers of {experts} experts, take {needed} MiB"
    )]
    Window {
        /// The number of layers.
        layers: usize,
        /// The number of experts of each layer.
        experts: usize,
        /// The MiB that all windows would take.
        needed: u64,
        /// The MiB that they may take.
        most: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StateStoreError),
    /// The phase failed.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// An operating system error.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
