//! The library call inside a serving loop: top-k ids in, physical slots out, in LPLB's terms.
//!
//! In: the placement of one layer (once), then per batch the logical expert ids that this source's tokens chose. Out: the
//! slot that serves each of them. Every rank holds a planner of its own; fed the same all-gathered counts, all compute
//! the same quotas and the same shares, so no rank has to be told what another decided.
//!
//! LPLB's floor per rank and SGLang's random sampling both miss the quotas that they computed; here the tokens of all
//! sources together meet every quota exactly (DESIGN 4.2).

mod copies;
mod gather;

pub use copies::Copies;
pub use gather::{AllGather, GatherError, InProcess};

use crate::cluster::Cluster;
use crate::place::Placement;
use crate::split::{Keep, Local, Method, Shares, Split, SplitError, Splitter, Traffic};
use thiserror::Error;

/// Splits batches of one layer and says which slot serves which token.
#[derive(Debug)]
pub struct Planner {
    cluster: Cluster,
    engine: Engine,
    split: Split,
    shares: Shares,
    /// `[E]`, summed over the sources.
    totals: Vec<u64>,
    /// Per expert: the copy whose interval the next token falls into, and how many more do.
    cursor: Vec<(usize, u64)>,
}

/// Which of the splits of least peak is taken.
#[derive(Debug)]
enum Engine {
    /// Whichever comes first, in microseconds.
    Any(Splitter),
    /// One of least traffic.
    Local(Local),
}

/// Why tokens could not be redirected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlannerError {
    /// The batch could not be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The counts of the other ranks could not be had.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// A placement for another group.
    #[error("the placement is for {placement} ranks, the cluster has {cluster}")]
    Ranks {
        /// Ranks of the placement.
        placement: usize,
        /// Ranks of the cluster.
        cluster: usize,
    },
    /// A source that is no rank of the group.
    #[error("source {source_rank}: the group has {ranks} ranks")]
    Source {
        /// The source asked for.
        source_rank: usize,
        /// Ranks of the group.
        ranks: usize,
    },
    /// An id that is neither an expert nor -1.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Where in the ids, from 0.
        position: usize,
        /// What stands there.
        id: i64,
        /// Logical experts.
        experts: usize,
    },
    /// Memory for another number of slots than there are ids.
    #[error("room for {room} slots, {ids} ids")]
    Room {
        /// Ids given.
        ids: usize,
        /// Slots that there is room for.
        room: usize,
    },
    /// More tokens of an expert than the counts that were split.
    #[error("position {position}: expert {expert} has more tokens on source {source_rank} than were counted")]
    Uncounted {
        /// Where in the ids, from 0.
        position: usize,
        /// The expert.
        expert: usize,
        /// The source.
        source_rank: usize,
    },
}

impl Engine {
    fn placement(&self) -> &Placement {
        match self {
            Engine::Any(splitter) => splitter.placement(),
            Engine::Local(local) => local.placement(),
        }
    }
}

impl Planner {
    /// A planner for one layer.
    ///
    /// # Errors
    /// When the placement is not for as many ranks as the cluster has.
    pub fn new(placement: Placement, cluster: Cluster) -> Result<Self, PlannerError> {
        Self::by(placement, cluster, Method::Exact)
    }

    /// A planner that splits by any method; only [`Method::Exact`] proves its peak.
    ///
    /// # Errors
    /// As [`Planner::new`].
    pub fn by(placement: Placement, cluster: Cluster, method: Method) -> Result<Self, PlannerError> {
        let nodes = cluster.nodes();
        Self::build(placement, cluster, |placement| {
            Ok(Engine::Any(Splitter::on_nodes(placement, method, nodes)?))
        })
    }

    /// A planner whose splits have the same least peak, and among those (with [`Keep::Vector`]: among those with the most
    /// even load vector) the least traffic between nodes, then between ranks. Takes longer than [`Planner::new`]'s.
    ///
    /// # Errors
    /// As [`Planner::new`].
    pub fn local(placement: Placement, cluster: Cluster, keep: Keep) -> Result<Self, PlannerError> {
        Self::build(placement, cluster, |placement| Ok(Engine::Local(Local::new(placement, &cluster, keep)?)))
    }

    fn build(
        placement: Placement,
        cluster: Cluster,
        engine: impl FnOnce(Placement) -> Result<Engine, SplitError>,
    ) -> Result<Self, PlannerError> {
        if placement.ranks() != cluster.ranks() {
            return Err(PlannerError::Ranks { placement: placement.ranks(), cluster: cluster.ranks() });
        }
        let shares = Shares::new(&placement);
        let (totals, cursor) = (vec![0; placement.experts()], vec![(0, 0); placement.experts()]);
        Ok(Self { cluster, engine: engine(placement)?, split: Split::default(), shares, totals, cursor })
    }

    /// The placement that tokens are redirected on.
    pub fn placement(&self) -> &Placement {
        self.engine.placement()
    }

    /// Splits one batch; `counts` is `[source][expert]`, tokens that each rank routed to each expert.
    ///
    /// # Errors
    /// When the counts are not `[R][E]` or their sum overflows.
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
            return Err(SplitError::Solver(evenkeel_solver::Error::Overflow).into());
        }
        match &mut self.engine {
            Engine::Any(splitter) => splitter.split(&self.totals, &mut self.split)?,
            Engine::Local(local) => local.split(counts, &mut self.split)?,
        }
        self.shares.fill(self.engine.placement(), &self.cluster, &self.split, counts)?;
        Ok(&self.split)
    }

    /// Checks the last split against its `counts`: every token served by a slot that holds its expert, the peak certified,
    /// and, for [`Planner::local`], the traffic proved least.
    ///
    /// # Errors
    /// [`SplitError::Broken`] says what does not hold.
    pub fn check(&self, counts: &[u64]) -> Result<(), PlannerError> {
        match &self.engine {
            Engine::Any(splitter) => splitter.check(&self.totals, &self.split)?,
            Engine::Local(local) => local.check(counts)?,
        }
        Ok(())
    }

    /// How far the tokens of the last batch travel.
    pub fn traffic(&self) -> Traffic {
        self.shares.traffic()
    }

    /// The physical slot of every entry of one source's `topk_ids`, by the last [`Planner::split`]; -1 stays -1.
    ///
    /// The `i`-th token of an expert on this source goes to the copy whose interval contains `i`, the intervals being
    /// the source's shares in ascending order of slots.
    ///
    /// # Errors
    /// When an id is no expert, or the ids hold more tokens of an expert than were counted.
    pub fn redirect<Id>(&mut self, topk_ids: &[Id], source: usize) -> Result<Vec<Id>, PlannerError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let mut slots = topk_ids.to_vec();
        self.redirect_into(topk_ids, source, &mut slots)?;
        Ok(slots)
    }

    /// As [`Planner::redirect`], into memory that is there: `slots` is as long as `topk_ids`. After an error its contents
    /// are no answer.
    ///
    /// # Errors
    /// As [`Planner::redirect`], and when the lengths differ.
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
        let (experts, placement) = (self.totals.len(), self.engine.placement());
        for (expert, cursor) in self.cursor.iter_mut().enumerate() {
            *cursor = (0, self.shares.of(source, expert)[0]);
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
            let shares = self.shares.of(source, expert);
            let (copy, left) = &mut self.cursor[expert];
            while *left == 0 {
                *copy += 1;
                let Some(&share) = shares.get(*copy) else {
                    return Err(PlannerError::Uncounted { position, expert, source_rank: source });
                };
                *left = share;
            }
            *left -= 1;
            *slot = Id::try_from(placement.copies(expert)[*copy]).map_err(|_| wrong)?;
        }
        Ok(())
    }

    /// Counts one source's ids into `counts`, `[E]`: what the other sources have to be told; -1 counts for nothing.
    ///
    /// # Errors
    /// When an id is no expert, or `counts` is not `[E]`.
    pub fn count<Id>(&self, topk_ids: &[Id], counts: &mut [u64]) -> Result<(), PlannerError>
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

    /// LPLB's drop-in shape: counts this source's ids, gathers everybody's counts, splits and redirects.
    ///
    /// # Errors
    /// As [`Planner::split`] and [`Planner::redirect`], and when the gathering fails.
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
        self.count(topk_ids, &mut own)?;
        let mut counts = vec![0u64; self.cluster.ranks() * experts];
        gather.all_gather(source, &own, &mut counts)?;
        self.split(&counts)?;
        self.redirect(topk_ids, source)
    }
}
