//! Ranks that are threads of one process.

use super::{At, Transport, TransportError};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// One rank of a group of threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    timeout: Duration,
    /// To each rank, and from each: parcels, then moves, then parts of exchanges with their numbers.
    to: Vec<[Sender<Numbered>; 3]>,
    from: Vec<[Receiver<Numbered>; 3]>,
    /// Ranks that moves are to come from.
    begun: RefCell<Vec<usize>>,
    under_way: RefCell<UnderWay>,
}

/// Bytes, and which exchange they are of where several may be under way.
type Numbered = (u64, Vec<u8>);

#[derive(Debug, Default)]
struct UnderWay {
    /// By number: from whom something is to come.
    begun: HashMap<u64, Vec<usize>>,
    /// By number and sender: what has come.
    came: HashMap<(u64, usize), Vec<u8>>,
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
                Ok((_, bytes)) => came.push(bytes),
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
            let _ = to[0].send((0, parcel));
        }
        self.next(at, 0, 0..self.ranks())
    }

    fn begin(&self, number: u64, to: Vec<(usize, Vec<u8>)>, from: Vec<usize>) -> Result<(), TransportError> {
        for (to, bytes) in to {
            let _ = self.to[to][2].send((number, bytes));
        }
        self.under_way.borrow_mut().begun.insert(number, from);
        Ok(())
    }

    fn is_through(&self, number: u64) -> Result<bool, TransportError> {
        let UnderWay { begun, came } = &mut *self.under_way.borrow_mut();
        let sources = begun.get(&number).ok_or_else(|| TransportError::not_begun(number))?;
        for &source in sources {
            while let Ok((number, bytes)) = self.from[source][2].try_recv() {
                came.insert((number, source), bytes);
            }
        }
        Ok(sources.iter().all(|&source| came.contains_key(&(number, source))))
    }

    fn end(&self, at: At, number: u64) -> Result<Vec<Vec<u8>>, TransportError> {
        let UnderWay { begun, came } = &mut *self.under_way.borrow_mut();
        let sources = begun.remove(&number).ok_or_else(|| TransportError::not_begun(number))?;
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
        if silent.is_empty() { Ok(all) } else { Err(Self::lost(at, silent, since.elapsed())) }
    }

    fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError> {
        let _ = self.to[to][1].send((0, bytes));
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
