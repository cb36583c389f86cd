//! What `cargo bench` and `evenkeel bench split` share: instances, peers, measurement. No stable interface.

pub mod corpus;
mod engine;
pub mod measure;
