//! How processes that a launcher started find each other: who they are, and a store that they all reach.
//!
//! In: the environment that `torchrun`, Slurm or Open MPI's `mpirun` sets ([`Launch`]). Out: a [`Store`] of keys and values, in the
//! protocol of PyTorch's `TCPStore`, so that the one that torchrun's agent keeps serves, and PyTorch's clients understand ours
//! ([`StoreServer`]). What goes through it is small: who is there, an id to begin with, signs of life.

mod launch;
mod protocol;
mod server;
mod store;

pub use launch::{Launch, LaunchError};
pub use server::StoreServer;
pub use store::{Store, StoreError};
