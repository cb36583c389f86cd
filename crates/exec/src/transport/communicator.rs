//! One rank's end of a transport: what it is for, how far it goes, and whether all agree.

use super::{At, Transport, TransportError};
use crate::cluster::Cluster;
use crate::place::Placement;
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// What bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Tokens per expert of every rank.
    Counts,
    /// Tokens to the ranks of their experts.
    Dispatch,
    /// Their results back.
    Combine,
    /// Weights to other slots.
    Moves,
    /// What a step did, and proofs that all ranks do the same.
    Control,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Purpose; 5] =
        [Purpose::Counts, Purpose::Dispatch, Purpose::Combine, Purpose::Moves, Purpose::Control];

    /// As tables and documents call it.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Counts => "counts",
            Purpose::Dispatch => "dispatch",
            Purpose::Combine => "combine",
            Purpose::Moves => "moves",
            Purpose::Control => "control",
        }
    }
}

/// How far bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// They stay on their rank.
    Rank,
    /// To another rank of the same node of the [`Cluster`].
    Node,
    /// To another node.
    Cluster,
}

impl Reach {
    /// All of them.
    pub const ALL: [Reach; 3] = [Reach::Rank, Reach::Node, Reach::Cluster];
}

/// Bytes sent by [`Purpose`] and [`Reach`], and how long was waited for those of others, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes.
    pub bytes: [[u64; Reach::ALL.len()]; Purpose::ALL.len()],
    /// From the call of an exchange to its end; of one that was begun before, what was still to be waited for.
    pub waited: [Duration; Purpose::ALL.len()],
    /// From the beginning of a layer's dispatch to the end of its combine, over all layers that ran.
    pub layers: Duration,
    /// How many layers that were.
    pub runs: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Tally) -> Tally {
        for (sum, bytes) in self.bytes.iter_mut().flatten().zip(other.bytes.iter().flatten()) {
            *sum += bytes;
        }
        self.waited.iter_mut().zip(other.waited).for_each(|(sum, waited)| *sum += waited);
        self.layers += other.layers;
        self.runs += other.runs;
        self
    }
}

/// One rank's end of a transport.
#[derive(Debug)]
pub struct Wire {
    transport: Box<dyn Transport>,
    cluster: Cluster,
    at: Cell<(Option<u64>, Option<usize>)>,
    tally: RefCell<Tally>,
    numbers: Cell<u64>,
}

impl Wire {
    /// The end of a transport in a group.
    ///
    /// # Errors
    /// When they differ in their number of ranks.
    pub fn new(transport: Box<dyn Transport>, cluster: Cluster) -> Result<Self, TransportError> {
        let (given, expected) = (transport.ranks(), cluster.ranks());
        if given != expected {
            return Err(TransportError::Ranks { given, expected });
        }
        Ok(Self { transport, cluster, at: Cell::default(), tally: RefCell::default(), numbers: Cell::new(0) })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.transport.ranks()
    }

    /// The transport's name.
    pub fn name(&self) -> &'static str {
        self.transport.name()
    }

    /// What was sent so far.
    pub fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    /// Says what this rank is doing from here on, for messages.
    pub fn doing(&self, step: Option<u64>, layer: Option<usize>) {
        self.at.set((step, layer));
    }

    /// What it is doing.
    pub fn at(&self, purpose: Purpose) -> At {
        let (step, layer) = self.at.get();
        At { step, layer, purpose }
    }

    /// Counts what is sent to a rank.
    pub(in crate::exec) fn count(&self, purpose: Purpose, to: usize, bytes: usize) {
        let (me, cluster) = (self.rank(), &self.cluster);
        let reach = match () {
            () if to == me => Reach::Rank,
            () if cluster.node_of(to) == cluster.node_of(me) => Reach::Node,
            () => Reach::Cluster,
        };
        self.tally.borrow_mut().bytes[purpose as usize][reach as usize] += bytes as u64;
    }

    /// Counts what stays on this rank and need not be packed.
    pub fn stays(&self, purpose: Purpose, bytes: u64) {
        self.count(purpose, self.rank(), bytes as usize);
    }

    /// A layer took so long from its dispatch to the end of its combine.
    pub fn took(&self, time: Duration) {
        let mut tally = self.tally.borrow_mut();
        tally.layers += time;
        tally.runs += 1;
    }

    /// Counts a time that exchanges took beside this thread.
    #[cfg(feature = "cuda")]
    pub(in crate::exec) fn took_beside(&self, purpose: Purpose, time: Duration) {
        self.tally.borrow_mut().waited[purpose as usize] += time;
    }

    fn waiting<T>(&self, purpose: Purpose, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.tally.borrow_mut().waited[purpose as usize] += begun.elapsed();
        done
    }

    /// All-to-all; see [`Transport::exchange`].
    ///
    /// # Errors
    /// As there.
    pub fn exchange(&self, purpose: Purpose, parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TransportError> {
        parcels.iter().enumerate().for_each(|(to, parcel)| self.count(purpose, to, parcel.len()));
        self.waiting(purpose, || self.transport.exchange(self.at(purpose), parcels))
    }

    /// The first of so many numbers for exchanges; all ranks ask alike, in the same order.
    pub fn numbers(&self, count: u64) -> u64 {
        let first = self.numbers.get();
        self.numbers.set(first + count);
        first
    }

    /// Begins an exchange with some of the other ranks; see [`Transport::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(
        &self,
        purpose: Purpose,
        number: u64,
        to: Vec<(usize, Vec<u8>)>,
        from: Vec<usize>,
    ) -> Result<(), TransportError> {
        to.iter().for_each(|(to, bytes)| self.count(purpose, *to, bytes.len()));
        self.transport.begin(number, to, from)
    }

    /// Whether one is through; see [`Transport::is_through`].
    ///
    /// # Errors
    /// As there.
    pub fn is_through(&self, number: u64) -> Result<bool, TransportError> {
        self.transport.is_through(number)
    }

    /// Waits for one; see [`Transport::end`].
    ///
    /// # Errors
    /// As there.
    pub fn end(&self, purpose: Purpose, number: u64) -> Result<Vec<Vec<u8>>, TransportError> {
        self.waiting(purpose, || self.transport.end(self.at(purpose), number))
    }

    /// Everybody's bytes, `[R]`.
    ///
    /// # Errors
    /// As [`Transport::exchange`].
    pub fn all_gather(&self, purpose: Purpose, own: Vec<u8>) -> Result<Vec<Vec<u8>>, TransportError> {
        self.exchange(purpose, vec![own; self.ranks()])
    }

    /// Everybody's numbers, one rank's after the other's; all bring as many.
    ///
    /// # Errors
    /// As [`Transport::exchange`], and when one brings another number of them.
    pub fn all_numbers(&self, purpose: Purpose, own: &[u64]) -> Result<Vec<u64>, TransportError> {
        let bytes = own.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut all = Vec::with_capacity(own.len() * self.ranks());
        for (from, bytes) in self.all_gather(purpose, bytes)?.iter().enumerate() {
            if bytes.len() != own.len() * 8 {
                return Err(self.malformed(purpose, from, "another number of numbers than here"));
            }
            all.extend(bytes.as_chunks::<8>().0.iter().map(|&number| u64::from_le_bytes(number)));
        }
        Ok(all)
    }

    /// Begins a move of weights; see [`Transport::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError> {
        self.count(Purpose::Moves, to, bytes.len());
        self.transport.send(to, bytes)
    }

    /// See [`Transport::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn receive(&self, from: usize) -> Result<(), TransportError> {
        self.transport.receive(from)
    }

    /// Waits for all moves; see [`Transport::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(&self) -> Result<Vec<Vec<u8>>, TransportError> {
        self.waiting(Purpose::Moves, || self.transport.finish(self.at(Purpose::Moves)))
    }

    /// Proves that all ranks hold the same: their digests are compared. The error is the same on all of them.
    ///
    /// # Errors
    /// [`TransportError::Differ`] names those that hold something else than most (at a tie: than the lowest rank); else as
    /// [`Transport::exchange`].
    pub fn agree(&self, what: &'static str, digest: [u8; 32]) -> Result<(), TransportError> {
        let all = self.all_gather(Purpose::Control, digest.to_vec())?;
        let votes = |digest: &Vec<u8>| all.iter().filter(|other| *other == digest).count();
        // The first of those with most votes.
        let most = all.iter().rev().max_by_key(|digest| votes(digest));
        let ranks: Vec<usize> = (0..all.len()).filter(|&rank| Some(&all[rank]) != most).collect();
        if ranks.is_empty() {
            Ok(())
        } else {
            Err(TransportError::Differ { what, ranks, at: self.at(Purpose::Control) })
        }
    }

    /// What came from a rank is not what was to come.
    pub fn malformed(&self, purpose: Purpose, from: usize, reason: &'static str) -> TransportError {
        TransportError::Malformed { from, at: self.at(purpose), reason }
    }
}

/// A digest of a placement and, where there is one, of the quotas of a batch on it.
pub(in crate::exec) fn digest(placement: &Placement, quotas: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for id in placement.ids() {
        hash.update(id.to_le_bytes());
    }
    for quota in quotas {
        hash.update(quota.to_le_bytes());
    }
    hash.finalize().into()
}
