//! A communicator between ranks that are threads of one process.

use super::{CallContext, CommError, Communicator};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// One rank of a group of threads.
#[derive(Debug)]
pub struct ThreadCommunicator {
    rank: usize,
    timeout: Duration,
    /// Channels to each rank, and from each rank: all-to-all send buffers, moves, and messages of numbered
    /// exchanges.
    to: Vec<[Sender<NumberedMessage>; 3]>,
    from: Vec<[Receiver<NumberedMessage>; 3]>,
    /// Ranks from which moves are expected.
    begun: RefCell<Vec<usize>>,
    under_way: RefCell<ThreadExchanges>,
}

/// Bytes with the number of their exchange, which is 0 for send buffers and moves.
type NumberedMessage = (u64, Vec<u8>);

#[derive(Debug, Default)]
struct ThreadExchanges {
    /// Senders of each exchange, by its number.
    begun: HashMap<u64, Vec<usize>>,
    /// Received messages, by number and sender.
    came: HashMap<(u64, usize), Vec<u8>>,
}

impl ThreadCommunicator {
    /// Creates the ranks of a group. Each must move to a thread of its own. A rank that sends nothing for
    /// `timeout` counts as lost.
    pub fn create_group(ranks: usize, timeout: Duration) -> Vec<ThreadCommunicator> {
        let mut group: Vec<ThreadCommunicator> = (0..ranks)
            .map(|rank| ThreadCommunicator {
                rank,
                timeout,
                to: Vec::new(),
                from: Vec::new(),
                begun: RefCell::default(),
                under_way: RefCell::default(),
            })
            .collect();
        for from in 0..ranks {
            for to in 0..ranks {
                let [parcels, moves, parts] = std::array::from_fn(|_| channel());
                group[from].to.push([parcels.0, moves.0, parts.0]);
                group[to].from.push([parcels.1, moves.1, parts.1]);
            }
        }
        group
    }

    fn lost_error(at: CallContext, silent: Vec<usize>, waited: Duration) -> CommError {
        CommError::Lost { at, silent, failed: Vec::new(), waited }
    }

    /// Receives the next message of a kind from every rank of `sources`. The error names the ranks that send
    /// nothing.
    fn receive_each(
        &self,
        at: CallContext,
        kind: usize,
        sources: impl Iterator<Item = usize>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let (begun, mut came, mut silent) = (Instant::now(), Vec::new(), Vec::new());
        for source in sources {
            match self.from[source][kind].recv_timeout(self.timeout.saturating_sub(begun.elapsed())) {
                Ok((_, bytes)) => came.push(bytes),
                Err(_) => silent.push(source),
            }
        }
        silent.dedup();
        if silent.is_empty() { Ok(came) } else { Err(Self::lost_error(at, silent, begun.elapsed())) }
    }
}

impl Communicator for ThreadCommunicator {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn local_ranks(&self) -> Range<usize> {
        self.rank..self.rank + 1
    }

    fn all_to_all_v(&self, at: CallContext, parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        for (to, parcel) in self.to.iter().zip(parcels) {
            // A lost rank is detected when nothing arrives from it.
            let _ = to[0].send((0, parcel));
        }
        self.receive_each(at, 0, 0..self.ranks())
    }

    fn start_exchange(
        &self,
        number: u64,
        to: Vec<(usize, Vec<u8>)>,
        from: Vec<usize>,
    ) -> Result<(), CommError> {
        for (to, bytes) in to {
            let _ = self.to[to][2].send((number, bytes));
        }
        self.under_way.borrow_mut().begun.insert(number, from);
        Ok(())
    }

    fn test(&self, number: u64) -> Result<bool, CommError> {
        let ThreadExchanges { begun, came } = &mut *self.under_way.borrow_mut();
        let sources = begun.get(&number).ok_or_else(|| CommError::not_started(number))?;
        for &source in sources {
            while let Ok((number, bytes)) = self.from[source][2].try_recv() {
                came.insert((number, source), bytes);
            }
        }
        Ok(sources.iter().all(|&source| came.contains_key(&(number, source))))
    }

    fn wait(&self, at: CallContext, number: u64) -> Result<Vec<Vec<u8>>, CommError> {
        let ThreadExchanges { begun, came } = &mut *self.under_way.borrow_mut();
        let sources = begun.remove(&number).ok_or_else(|| CommError::not_started(number))?;
        let (since, mut all, mut silent) = (Instant::now(), Vec::with_capacity(sources.len()), Vec::new());
        for source in sources {
            let mut bytes = came.remove(&(number, source));
            while bytes.is_none() {
                match self.from[source][2].recv_timeout(self.timeout.saturating_sub(since.elapsed())) {
                    Ok((of, part)) if of == number => bytes = Some(part),
                    Ok((of, part)) => drop(came.insert((of, source), part)),
                    Err(_) => break,
                }
            }
            match bytes {
                Some(bytes) => all.push(bytes),
                None => silent.push(source),
            }
        }
        if silent.is_empty() { Ok(all) } else { Err(Self::lost_error(at, silent, since.elapsed())) }
    }

    fn isend(&self, to: usize, bytes: Vec<u8>) -> Result<(), CommError> {
        let _ = self.to[to][1].send((0, bytes));
        Ok(())
    }

    fn irecv(&self, from: usize) -> Result<(), CommError> {
        self.begun.borrow_mut().push(from);
        Ok(())
    }

    fn wait_all(&self, at: CallContext) -> Result<Vec<Vec<u8>>, CommError> {
        self.receive_each(at, 1, self.begun.take().into_iter())
    }
}
