//! Exchanges under way: messages that were begun, and messages that are expected.

use super::request::MpiRequest;
use crate::comm::CommError;
use mpi::ffi;
use std::ffi::c_int;

/// Sent and expected messages, in the order in which they were begun.
#[derive(Default)]
pub(super) struct PendingExchange {
    pub(super) sent: Vec<MpiRequest>,
    pub(super) wanted: Vec<ExpectedMessage>,
    /// True if several messages may come from one rank. They arrive in the order in which they were begun.
    pub(super) in_order: bool,
}

impl PendingExchange {
    /// Advances all messages as far as possible. Returns whether all are complete.
    pub(super) fn test(&mut self, comm: ffi::MPI_Comm) -> Result<bool, CommError> {
        let mut all = true;
        // Tests all messages, because a large message begins to move only when it is tested.
        for wanted in &mut self.wanted {
            all &= wanted.test_received(comm)?;
            if self.in_order && !all {
                break;
            }
        }
        for sent in &mut self.sent {
            all &= sent.test()?;
        }
        Ok(all)
    }
}

/// An expected message.
pub(super) struct ExpectedMessage {
    pub(super) from: usize,
    pub(super) tag: c_int,
    pub(super) message: Option<MpiRequest>,
}

impl ExpectedMessage {
    fn test_received(&mut self, comm: ffi::MPI_Comm) -> Result<bool, CommError> {
        if self.message.is_none() {
            self.message =
                MpiRequest::try_receive(comm, Some(self.from), self.tag)?.map(|(_, message)| message);
        }
        self.message.as_mut().map_or(Ok(false), MpiRequest::test)
    }
}
