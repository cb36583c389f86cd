//! Rendezvous of the processes of a launcher: their ranks, and a store that all can reach.
//!
//! Input: the environment that `torchrun`, Slurm or Open MPI's `mpirun` sets ([`Launch`]). Output: a
//! [`StoreClient`] of keys and values, in the protocol of PyTorch's `TCPStore`. So the store of torchrun's
//! agent can be used, and PyTorch's clients understand [`StoreServer`]. Only small data passes through it:
//! addresses, a communicator id, heartbeats.

mod launch;
mod protocol;
mod server;
mod store;

pub use launch::{Launch, LaunchError, StoreAddress};
pub use server::StoreServer;
pub use store::{StoreClient, StoreClientError};
