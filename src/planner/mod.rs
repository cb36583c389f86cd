//! The library call inside a serving loop: top-k ids in, slots out, in LPLB's terms.
//!
//! In: the placement of one layer (once), then per batch the logical expert ids of this source's tokens. Out:
//! the slot that serves each id. Every rank holds a planner of its own. With the same all-gathered counts all
//! ranks compute the same quotas and shares, so that they exchange no decisions.
//!
//! LPLB's floor per rank and SGLang's random sampling both miss the quotas that they computed. Here the
//! tokens of all sources together meet every quota exactly.

mod gather;
mod token_copies;

pub use gather::{AllGather, GatherError, ThreadGather};
pub use token_copies::TokenCopies;

use crate::cluster::Cluster;
use crate::place::{ExpertMove, Placement};
use crate::split::{
    DynamicSlots, PrimaryObjective, SourceShares, Split, SplitError, SplitMethod, Splitter, SplitterBuilder,
    TokenTraffic,
};
use thiserror::Error;

/// Planner that splits batches of one layer and assigns a slot to every token.
#[derive(Debug)]
pub struct Planner {
    cluster: Cluster,
    splitter: Splitter,
    /// True if the splitter takes the counts of every source instead of their sums.
    by_source: bool,
    split: Split,
    shares: SourceShares,
    /// Revision of the placement that the shares follow.
    revision: u64,
    /// Tokens per expert summed over the sources, `[E]`.
    totals: Vec<u64>,
    /// Per expert: the replica whose interval contains the next token, and the rest of that interval.
    cursor: Vec<(usize, u64)>,
}

/// Reasons for which tokens cannot be redirected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlannerError {
    /// The batch could not be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The counts of the other ranks are not available.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// The placement is for another group.
    #[error("the placement is for {placement} ranks, the cluster has {cluster}")]
    Ranks {
        /// Ranks of the placement.
        placement: usize,
        /// Ranks of the cluster.
        cluster: usize,
    },
    /// The source is no rank of the group.
    #[error("source {source_rank}: the group has {ranks} ranks")]
    Source {
        /// Requested source.
        source_rank: usize,
        /// Ranks of the group.
        ranks: usize,
    },
    /// An id is neither an expert nor -1.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Position in the ids, from 0.
        position: usize,
        /// Id found.
        id: i64,
        /// Number of logical experts.
        experts: usize,
    },
    /// The number of slots in the output differs from the number of ids.
    #[error("room for {room} slots, {ids} ids")]
    Room {
        /// Number of ids.
        ids: usize,
        /// Number of slots in the output.
        room: usize,
    },
    /// An expert has more tokens than the split counts.
    #[error("position {position}: expert {expert} has more tokens on source {source_rank} than were counted")]
    Uncounted {
        /// Position in the ids, from 0.
        position: usize,
        /// Expert in question.
        expert: usize,
        /// Source in question.
        source_rank: usize,
    },
}

impl Planner {
    /// Creates a planner for one layer.
    ///
    /// # Errors
    /// Fails if placement and cluster differ in their number of ranks.
    pub fn new(placement: Placement, cluster: Cluster) -> Result<Self, PlannerError> {
        Self::with_method(placement, cluster, SplitMethod::Exact)
    }

    /// Creates a planner that splits by any method. Only [`SplitMethod::Exact`] proves its peak.
    ///
    /// # Errors
    /// Fails as [`Planner::new`] does.
    pub fn with_method(
        placement: Placement,
        cluster: Cluster,
        method: SplitMethod,
    ) -> Result<Self, PlannerError> {
        let nodes = cluster.nodes();
        Self::with_splitter(placement, cluster, |builder| builder.method(method).nodes(nodes))
    }

    /// Creates a planner that takes, among the splits of lowest peak, one with the least traffic between
    /// nodes, then between ranks. With [`PrimaryObjective::Vector`] it takes one among those with the most
    /// even load vector. It is slower than [`Planner::new`]'s.
    ///
    /// # Errors
    /// Fails as [`Planner::new`] does.
    pub fn with_min_traffic(
        placement: Placement,
        cluster: Cluster,
        keep: PrimaryObjective,
    ) -> Result<Self, PlannerError> {
        let planner =
            Self::with_splitter(placement, cluster, |builder| builder.least_traffic(&cluster, keep))?;
        Ok(Self { by_source: true, ..planner })
    }

    /// Creates a planner whose ranks have dynamic slots, which receive copies before each batch.
    ///
    /// On every rank, the dynamic slots follow the static ones. [`Split::copies`] lists the copies to make
    /// before the experts run, and [`redirect`](Self::redirect) returns slots of both kinds. With the same
    /// counts, all ranks choose the same copies. docs/dynamic.md has the order of calls in a layer.
    ///
    /// ```
    /// use evenkeel::cluster::Cluster;
    /// use evenkeel::place::Placement;
    /// use evenkeel::planner::Planner;
    /// use evenkeel::split::{DynamicSlots, SlotMemory};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let placement = Placement::new(4, 2, vec![Some(0), Some(1), Some(2), Some(3)])?;
    /// let slots = DynamicSlots::new(1, SlotMemory::Shared);
    /// let mut planner = Planner::with_dynamic_slots(placement, Cluster::new(2, 1, 4, 0)?, slots)?;
    /// // Both ranks route to expert 0, which lives in slot 0 of rank 0. Rank 1 receives a copy in slot 5.
    /// let split = planner.split(&[20, 5, 5, 5, 20, 5, 5, 5])?;
    /// let copies = &split.copies.as_ref().ok_or("no copies")?.copies;
    /// assert_eq!((copies.len(), copies[0].expert, copies[0].slot), (1, 0, 5));
    /// assert_eq!(split.rank_loads, [35, 35]);
    /// // Rank 1 serves 15 of its own tokens of expert 0.
    /// let slots = planner.redirect(&[0; 20], 1)?;
    /// assert_eq!(slots.iter().filter(|&&slot| slot == 5).count(), 15);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Fails as [`Planner::new`] does, and if there are too many slots.
    pub fn with_dynamic_slots(
        placement: Placement,
        cluster: Cluster,
        slots: DynamicSlots,
    ) -> Result<Self, PlannerError> {
        Self::with_splitter(placement, cluster, |builder| builder.dynamic_slots(slots))
    }

    /// Chooses copies for the loads that are expected of the next batch, `[E]`, so that other work can hide
    /// them. The next [`split`](Self::split) makes no other copies.
    ///
    /// # Errors
    /// Fails without dynamic slots, and as [`split`](Self::split) does.
    pub fn prepare_copies(&mut self, expected: &[u64]) -> Result<&[ExpertMove], PlannerError> {
        Ok(self.splitter.prepare_copies(expected)?)
    }

    fn with_splitter(
        placement: Placement,
        cluster: Cluster,
        parts: impl FnOnce(SplitterBuilder) -> SplitterBuilder,
    ) -> Result<Self, PlannerError> {
        if placement.ranks() != cluster.ranks() {
            return Err(PlannerError::Ranks { placement: placement.ranks(), cluster: cluster.ranks() });
        }
        let (totals, cursor) = (vec![0; placement.experts()], vec![(0, 0); placement.experts()]);
        let splitter = parts(Splitter::builder(placement)).build()?;
        let (shares, split) = (SourceShares::new(splitter.placement()), Split::default());
        let (by_source, revision) = (false, 0);
        Ok(Self { cluster, splitter, by_source, split, shares, revision, totals, cursor })
    }

    /// Returns the placement on which tokens are redirected. With dynamic slots, it is that of the last
    /// batch.
    pub fn placement(&self) -> &Placement {
        self.splitter.placement()
    }

    /// Splits one batch. `counts` is `[source][expert]`, the tokens that each rank routed to each expert.
    ///
    /// # Errors
    /// Fails if the counts are not `[R][E]`, or if their sum overflows.
    pub fn split(&mut self, counts: &[u64]) -> Result<&Split, PlannerError> {
        let experts = self.totals.len();
        let expected = self.cluster.ranks() * experts;
        if counts.len() != expected {
            return Err(SplitError::Shape { given: counts.len(), experts: expected }.into());
        }
        self.totals.fill(0);
        let mut overflows = false;
        for own in counts.chunks_exact(experts) {
            for (total, &count) in self.totals.iter_mut().zip(own) {
                let (sum, over) = total.overflowing_add(count);
                *total = sum;
                overflows |= over;
            }
        }
        if overflows {
            return Err(SplitError::Solver(evenkeel_solver::SolverError::Overflow).into());
        }
        let loads = if self.by_source { counts } else { &self.totals };
        self.splitter.split(loads, &mut self.split)?;
        if self.revision != self.splitter.revision() {
            self.revision = self.splitter.revision();
            self.shares.follow(self.splitter.placement());
        }
        self.shares.assign_quotas(self.splitter.placement(), &self.cluster, &self.split, counts)?;
        Ok(&self.split)
    }

    /// Returns the result of the last [`split`](Self::split).
    pub fn last_split(&self) -> &Split {
        &self.split
    }

    /// Returns the copies of the last [`split`](Self::split), or of [`prepare_copies`](Self::prepare_copies)
    /// after it, in the order of their slots.
    pub fn last_copies(&self) -> &[ExpertMove] {
        let split = || self.split.copies.as_ref().map_or(&[][..], |batch| &batch.copies);
        self.splitter.prepared_copies().unwrap_or_else(split)
    }

    /// Checks the last split against its `counts`. Every token must be served by a slot that holds its
    /// expert, and the peak must be certified. For [`Planner::with_min_traffic`] the traffic must be proved
    /// least.
    ///
    /// # Errors
    /// Returns [`SplitError::Broken`] with the violated property.
    pub fn check(&self, counts: &[u64]) -> Result<(), PlannerError> {
        let loads = if self.by_source { counts } else { &self.totals };
        Ok(self.splitter.check(loads, &self.split)?)
    }

    /// Returns the counts of the last batch's tokens by distance.
    pub fn traffic(&self) -> TokenTraffic {
        self.shares.traffic()
    }

    /// Returns the slot of every entry of one source's `topk_ids`, by the last [`Planner::split`]. -1 stays
    /// -1.
    ///
    /// The `i`-th token of an expert on this source goes to the replica whose interval contains `i`. The
    /// intervals are the source's shares in ascending order of slots.
    ///
    /// # Errors
    /// Fails if an id is no expert, or if the ids hold more tokens of an expert than the counts.
    pub fn redirect<Id>(&mut self, topk_ids: &[Id], source: usize) -> Result<Vec<Id>, PlannerError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let mut slots = topk_ids.to_vec();
        self.redirect_into(topk_ids, source, &mut slots)?;
        Ok(slots)
    }

    /// Redirects as [`Planner::redirect`] does, into existing memory. `slots` is as long as `topk_ids`. After
    /// an error its contents are undefined.
    ///
    /// # Errors
    /// Fails as [`Planner::redirect`] does, and if the lengths differ.
    pub fn redirect_into<Id>(
        &mut self,
        topk_ids: &[Id],
        source: usize,
        slots: &mut [Id],
    ) -> Result<(), PlannerError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let ranks = self.cluster.ranks();
        if source >= ranks {
            return Err(PlannerError::Source { source_rank: source, ranks });
        }
        if slots.len() != topk_ids.len() {
            return Err(PlannerError::Room { ids: topk_ids.len(), room: slots.len() });
        }
        let (experts, placement) = (self.totals.len(), self.splitter.placement());
        for (expert, cursor) in self.cursor.iter_mut().enumerate() {
            *cursor = (0, self.shares.replica_tokens(source, expert)[0]);
        }
        for (position, (&id, slot)) in topk_ids.iter().zip(slots).enumerate() {
            let wide: i64 = id.into();
            let wrong = PlannerError::Id { position, id: wide, experts };
            let Some(expert) = usize::try_from(wide).ok().filter(|&e| e < experts) else {
                if wide == -1 {
                    *slot = id;
                    continue;
                }
                return Err(wrong);
            };
            let shares = self.shares.replica_tokens(source, expert);
            let (copy, left) = &mut self.cursor[expert];
            while *left == 0 {
                *copy += 1;
                let Some(&share) = shares.get(*copy) else {
                    return Err(PlannerError::Uncounted { position, expert, source_rank: source });
                };
                *left = share;
            }
            *left -= 1;
            *slot = Id::try_from(placement.replicas(expert)[*copy]).map_err(|_| wrong)?;
        }
        Ok(())
    }

    /// Counts one source's ids into `counts`, `[E]`, which the other sources need. -1 is not counted.
    ///
    /// # Errors
    /// Fails if an id is no expert, or if `counts` is not `[E]`.
    pub fn count_ids<Id>(&self, topk_ids: &[Id], counts: &mut [u64]) -> Result<(), PlannerError>
    where
        Id: Copy + Into<i64>,
    {
        let experts = self.totals.len();
        if counts.len() != experts {
            return Err(SplitError::Shape { given: counts.len(), experts }.into());
        }
        counts.fill(0);
        for (position, &id) in topk_ids.iter().enumerate() {
            let id: i64 = id.into();
            match usize::try_from(id).ok().and_then(|e| counts.get_mut(e)) {
                Some(count) => *count += 1,
                None if id == -1 => {}
                None => return Err(PlannerError::Id { position, id, experts }),
            }
        }
        Ok(())
    }

    /// Plans one batch in LPLB's drop-in form: counts this source's ids, gathers the counts of all ranks,
    /// splits and redirects.
    ///
    /// # Errors
    /// Fails as [`Planner::split`] and [`Planner::redirect`] do, and if the gathering fails.
    pub fn run<Id>(
        &mut self,
        topk_ids: &[Id],
        source: usize,
        gather: &mut dyn AllGather,
    ) -> Result<Vec<Id>, PlannerError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let experts = self.totals.len();
        let mut own = vec![0u64; experts];
        self.count_ids(topk_ids, &mut own)?;
        let mut counts = vec![0u64; self.cluster.ranks() * experts];
        gather.all_gather(source, &own, &mut counts)?;
        self.split(&counts)?;
        self.redirect(topk_ids, source)
    }
}
