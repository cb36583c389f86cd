//! Ranks that are threads of one process.

use super::{At, Transport, TransportError};
use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// One rank of a group of threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    timeout: Duration,
    /// To each rank, and from each: parcels, then moves.
    to: Vec<[Sender<Vec<u8>>; 2]>,
    from: Vec<[Receiver<Vec<u8>>; 2]>,
    /// Ranks that moves are to come from.
    begun: RefCell<Vec<usize>>,
}

impl Threads {
    /// The ranks of a group; each goes to a thread of its own. One that says nothing for `timeout` is taken for lost.
    pub fn group(ranks: usize, timeout: Duration) -> Vec<Threads> {
        let mut group: Vec<Threads> = (0..ranks)
            .map(|rank| Threads {
                rank,
                timeout,
                to: Vec::new(),
                from: Vec::new(),
                begun: RefCell::default(),
            })
            .collect();
        for from in 0..ranks {
            for to in 0..ranks {
                let ((send, receive), (send_move, receive_move)) = (channel(), channel());
                group[from].to.push([send, send_move]);
                group[to].from.push([receive, receive_move]);
            }
        }
        group
    }

    fn lost(at: At, silent: Vec<usize>, waited: Duration) -> TransportError {
        TransportError::Lost { at, silent, failed: Vec::new(), waited }
    }

    /// The next of a kind from every rank of `sources`, or which of them say nothing.
    fn next(
        &self,
        at: At,
        kind: usize,
        sources: impl Iterator<Item = usize>,
    ) -> Result<Vec<Vec<u8>>, TransportError> {
        let (begun, mut came, mut silent) = (Instant::now(), Vec::new(), Vec::new());
        for source in sources {
            match self.from[source][kind].recv_timeout(self.timeout.saturating_sub(begun.elapsed())) {
                Ok(bytes) => came.push(bytes),
                Err(_) => silent.push(source),
            }
        }
        silent.dedup();
        if silent.is_empty() { Ok(came) } else { Err(Self::lost(at, silent, begun.elapsed())) }
    }
}

impl Transport for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, at: At, parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TransportError> {
        for (to, parcel) in self.to.iter().zip(parcels) {
            // Who is gone is found out when nothing comes from there.
            let _ = to[0].send(parcel);
        }
        self.next(at, 0, 0..self.ranks())
    }

    fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError> {
        let _ = self.to[to][1].send(bytes);
        Ok(())
    }

    fn receive(&self, from: usize) -> Result<(), TransportError> {
        self.begun.borrow_mut().push(from);
        Ok(())
    }

    fn finish(&self, at: At) -> Result<Vec<Vec<u8>>, TransportError> {
        self.next(at, 1, self.begun.take().into_iter())
    }
}
