//! One process's end of a communicator: traffic by purpose and distance, activities for error messages, and
//! checks that all ranks agree.

#[cfg(feature = "cuda")]
use super::DeviceCommunicator;
use super::{CallContext, CommError, Communicator, LocalCommunicator};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The purpose of transferred bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Tokens per expert of every rank.
    Counts,
    /// Tokens on the way to the ranks of their experts.
    Dispatch,
    /// Results on the way back.
    Combine,
    /// Weights on the way to other slots.
    Moves,
    /// Results of steps, and digests that prove that all ranks compute the same.
    Control,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Purpose; 5] =
        [Purpose::Counts, Purpose::Dispatch, Purpose::Combine, Purpose::Moves, Purpose::Control];

    /// Returns the name in tables and documents.
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

/// The distance that bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distance {
    /// Bytes that stay on their rank.
    Rank,
    /// Bytes to another rank of the same node of the [`Cluster`].
    Node,
    /// Bytes to another node.
    Cluster,
}

impl Distance {
    /// All distances.
    pub const ALL: [Distance; 3] = [Distance::Rank, Distance::Node, Distance::Cluster];
}

/// Traffic by [`Purpose`] and [`Distance`], and waiting times by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TrafficStats {
    pub(crate) bytes: [[u64; Distance::ALL.len()]; Purpose::ALL.len()],
    pub(crate) waited: [Duration; Purpose::ALL.len()],
    /// Time from the beginning of a layer's dispatch to the end of its combine, summed over all layers that
    /// ran.
    pub layers: Duration,
    /// Number of these layers.
    pub runs: u64,
}

impl TrafficStats {
    /// Returns the bytes sent for a purpose over a distance.
    pub fn bytes(&self, purpose: Purpose, distance: Distance) -> u64 {
        self.bytes[purpose as usize][distance as usize]
    }

    /// Returns the time from the call of exchanges to their end. For an exchange that was begun earlier, only
    /// the time of the final wait.
    pub fn waited(&self, purpose: Purpose) -> Duration {
        self.waited[purpose as usize]
    }

    /// Returns the sum of both.
    #[must_use]
    pub fn sum_with(mut self, other: &TrafficStats) -> TrafficStats {
        for (sum, bytes) in self.bytes.iter_mut().flatten().zip(other.bytes.iter().flatten()) {
            *sum += bytes;
        }
        self.waited.iter_mut().zip(other.waited).for_each(|(sum, waited)| *sum += waited);
        self.layers += other.layers;
        self.runs += other.runs;
        self
    }
}

/// One process's end of a communicator: the ranks of this process, and the way to those of other processes.
#[derive(Debug)]
pub struct ProcessGroup {
    communicator: Rc<dyn Communicator>,
    cluster: Cluster,
    at: Cell<(Option<u64>, Option<usize>)>,
    tally: RefCell<TrafficStats>,
    numbers: Cell<u64>,
}

impl ProcessGroup {
    /// Connects a communicator with the group that it serves.
    ///
    /// # Errors
    /// Fails if they differ in their number of ranks.
    pub fn new(communicator: Rc<dyn Communicator>, cluster: Cluster) -> Result<Self, CommError> {
        let (given, expected) = (communicator.ranks(), cluster.ranks());
        if given != expected {
            return Err(CommError::Ranks { given, expected });
        }
        Ok(Self::connect(communicator, cluster))
    }

    /// Creates a group whose ranks are all in this process.
    pub fn local(cluster: Cluster) -> Self {
        Self::connect(Rc::new(LocalCommunicator::new(cluster.ranks())), cluster)
    }

    fn connect(communicator: Rc<dyn Communicator>, cluster: Cluster) -> Self {
        Self { communicator, cluster, at: Cell::default(), tally: RefCell::default(), numbers: Cell::new(0) }
    }

    /// Returns the rank of this process, the lowest one of several.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// Returns the number of ranks of the group.
    pub fn ranks(&self) -> usize {
        self.communicator.ranks()
    }

    /// Returns the ranks of this process: one, or all.
    pub fn local_ranks(&self) -> Range<usize> {
        self.communicator.local_ranks()
    }

    /// Returns whether a rank is in this process.
    pub fn is_local(&self, rank: usize) -> bool {
        self.local_ranks().contains(&rank)
    }

    /// Returns whether all ranks are in this process.
    pub fn is_complete(&self) -> bool {
        self.local_ranks().len() == self.ranks()
    }

    /// Returns the way of device memory to the other ranks; see [`Communicator::devices`].
    #[cfg(feature = "cuda")]
    pub(crate) fn devices(&self) -> Result<&dyn DeviceCommunicator, CommError> {
        self.communicator.devices()
    }

    /// Returns the name of the communicator.
    pub fn name(&self) -> &'static str {
        self.communicator.name()
    }

    /// Returns the traffic so far.
    pub fn traffic_stats(&self) -> TrafficStats {
        *self.tally.borrow()
    }

    /// Sets the step and layer that error messages state from now on.
    pub fn set_context(&self, step: Option<u64>, layer: Option<usize>) {
        self.at.set((step, layer));
    }

    /// Returns the current activity of this rank.
    pub fn context(&self, purpose: Purpose) -> CallContext {
        let (step, layer) = self.at.get();
        CallContext { step, layer, purpose }
    }

    /// Counts bytes that a rank of this process sends to another rank.
    pub(crate) fn record_bytes(&self, purpose: Purpose, [from, to]: [usize; 2], bytes: usize) {
        let cluster = &self.cluster;
        let reach = match () {
            () if to == from => Distance::Rank,
            () if cluster.node_of(to) == cluster.node_of(from) => Distance::Node,
            () => Distance::Cluster,
        };
        self.tally.borrow_mut().bytes[purpose as usize][reach as usize] += bytes as u64;
    }

    /// Counts one layer, with the time from its dispatch to the end of its combine.
    pub fn record_duration(&self, time: Duration) {
        let mut tally = self.tally.borrow_mut();
        tally.layers += time;
        tally.runs += 1;
    }

    /// Counts the time of exchanges that ran in the background of this thread.
    #[cfg(feature = "cuda")]
    pub(crate) fn record_background(&self, purpose: Purpose, time: Duration) {
        self.tally.borrow_mut().waited[purpose as usize] += time;
    }

    fn record_wait<T>(&self, purpose: Purpose, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.tally.borrow_mut().waited[purpose as usize] += begun.elapsed();
        done
    }

    /// Reserves `count` numbers for exchanges and returns the first. All ranks must call it alike, in the
    /// same order.
    pub fn reserve_ids(&self, count: u64) -> u64 {
        let first = self.numbers.get();
        self.numbers.set(first + count);
        first
    }

    /// Begins an exchange with some of the other ranks; see [`Communicator::start_exchange`].
    ///
    /// # Errors
    /// Fails as [`Communicator::start_exchange`] does.
    pub fn start_exchange(
        &self,
        purpose: Purpose,
        number: u64,
        to: Vec<(usize, Vec<u8>)>,
        from: Vec<usize>,
    ) -> Result<(), CommError> {
        to.iter().for_each(|(to, bytes)| self.record_bytes(purpose, [self.rank(), *to], bytes.len()));
        self.communicator.start_exchange(number, to, from)
    }

    /// Returns whether an exchange is complete; see [`Communicator::test`].
    ///
    /// # Errors
    /// Fails as [`Communicator::test`] does.
    pub fn test(&self, number: u64) -> Result<bool, CommError> {
        self.communicator.test(number)
    }

    /// Waits for an exchange; see [`Communicator::wait`].
    ///
    /// # Errors
    /// Fails as [`Communicator::wait`] does.
    pub fn wait(&self, purpose: Purpose, number: u64) -> Result<Vec<Vec<u8>>, CommError> {
        self.record_wait(purpose, || self.communicator.wait(self.context(purpose), number))
    }

    /// Returns the bytes of all ranks, `[R]`, from those of the ranks of this process.
    ///
    /// # Errors
    /// Fails as [`Communicator::all_to_all_v`] does.
    pub fn all_gather(&self, purpose: Purpose, own: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        for (from, own) in self.local_ranks().zip(&own) {
            (0..self.ranks()).for_each(|to| self.record_bytes(purpose, [from, to], own.len()));
        }
        self.record_wait(purpose, || self.communicator.all_gather(self.context(purpose), own))
    }

    /// Returns the numbers of all ranks, in the order of ranks, from those of the ranks of this process. All
    /// ranks must pass equally many.
    ///
    /// # Errors
    /// Fails as [`Communicator::all_to_all_v`] does, and if a rank sends another number of them.
    pub fn all_gather_u64(&self, purpose: Purpose, own: &[u64]) -> Result<Vec<u64>, CommError> {
        let locals = self.local_ranks().len().max(1);
        let each = own.len() / locals;
        let encode =
            |at: usize| own[at * each..][..each].iter().flat_map(|number| number.to_le_bytes()).collect();
        let bytes = (0..locals).map(encode).collect();
        let mut all = Vec::with_capacity(each * self.ranks());
        for (from, bytes) in self.all_gather(purpose, bytes)?.iter().enumerate() {
            if bytes.len() != each * 8 {
                return Err(self.malformed_message(
                    purpose,
                    from,
                    "the number of values differs from that of this rank",
                ));
            }
            all.extend(bytes.as_chunks::<8>().0.iter().map(|&number| u64::from_le_bytes(number)));
        }
        Ok(all)
    }

    /// Begins to send moved weights; see [`Communicator::isend`].
    ///
    /// # Errors
    /// Fails as [`Communicator::isend`] does.
    pub fn isend(&self, to: usize, bytes: Vec<u8>) -> Result<(), CommError> {
        self.record_bytes(Purpose::Moves, [self.rank(), to], bytes.len());
        self.communicator.isend(to, bytes)
    }

    /// Begins to receive moved weights; see [`Communicator::irecv`].
    ///
    /// # Errors
    /// Fails as [`Communicator::irecv`] does.
    pub fn irecv(&self, from: usize) -> Result<(), CommError> {
        self.communicator.irecv(from)
    }

    /// Waits for all moves; see [`Communicator::wait_all`].
    ///
    /// # Errors
    /// Fails as [`Communicator::wait_all`] does.
    pub fn wait_all(&self) -> Result<Vec<Vec<u8>>, CommError> {
        self.record_wait(Purpose::Moves, || self.communicator.wait_all(self.context(Purpose::Moves)))
    }

    /// Checks that all processes hold the same data, by comparing digests. The error is the same on all
    /// ranks. `digest` is not called if all ranks are in this process.
    ///
    /// # Errors
    /// Returns [`CommError::Differ`] with the ranks that differ from the majority. At a tie the digest
    /// of the lowest rank counts. Otherwise fails as [`Communicator::all_to_all_v`] does.
    pub fn assert_identical(
        &self,
        what: &'static str,
        digest: impl FnOnce() -> [u8; 32],
    ) -> Result<(), CommError> {
        if self.is_complete() {
            return Ok(());
        }
        let all = self.all_gather(Purpose::Control, vec![digest().to_vec()])?;
        let votes = |digest: &Vec<u8>| all.iter().filter(|other| *other == digest).count();
        // The digest of the majority; at a tie, that of the lowest rank.
        let most = all.iter().rev().max_by_key(|digest| votes(digest));
        let ranks: Vec<usize> = (0..all.len()).filter(|&rank| Some(&all[rank]) != most).collect();
        if ranks.is_empty() {
            Ok(())
        } else {
            Err(CommError::Differ { what, ranks, at: self.context(Purpose::Control) })
        }
    }

    /// Returns the error for a message of unexpected form from a rank.
    pub fn malformed_message(&self, purpose: Purpose, from: usize, reason: &'static str) -> CommError {
        CommError::Malformed { from, at: self.context(purpose), reason }
    }
}

/// Computes the digest of a placement and of the quotas of a batch on it. `quotas` may be empty.
pub(crate) fn placement_digest(placement: &Placement, quotas: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for id in placement.slot_ids() {
        hash.update(id.to_le_bytes());
    }
    for quota in quotas {
        hash.update(quota.to_le_bytes());
    }
    hash.finalize().into()
}
