//! The communicator of ranks that are all in this process, driven by one thread.

use super::{CallContext, CommError, Communicator};
use std::ops::Range;

/// All ranks of a group, in one process.
#[derive(Debug, Clone, Copy)]
pub struct LocalCommunicator {
    ranks: usize,
}

impl LocalCommunicator {
    /// Creates a group of ranks.
    pub fn new(ranks: usize) -> Self {
        Self { ranks }
    }
}

impl Communicator for LocalCommunicator {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn local_ranks(&self) -> Range<usize> {
        0..self.ranks
    }

    fn all_to_all_v(&self, _: CallContext, mut parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        let pairs = (0..self.ranks).flat_map(|to| (0..self.ranks).map(move |from| from * self.ranks + to));
        Ok(pairs.filter_map(|at| parcels.get_mut(at).map(std::mem::take)).collect())
    }

    fn all_gather(&self, _: CallContext, own: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::comm::Purpose;

    #[test]
    fn every_rank_gets_one_buffer_of_every_rank() {
        let (local, at) = (LocalCommunicator::new(3), CallContext::outside(Purpose::Control));
        let sent = (0..9u8).map(|pair| vec![pair / 3, pair % 3]).collect();
        let came = local.all_to_all_v(at, sent).unwrap();
        let expected: Vec<Vec<u8>> = (0..9u8).map(|pair| vec![pair % 3, pair / 3]).collect();
        assert_eq!(came, expected);
        assert_eq!(local.all_gather(at, vec![vec![1], vec![], vec![2]]).unwrap(), [vec![1], vec![], vec![2]]);
    }
}
