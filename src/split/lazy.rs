//! Decision between a new split and the old shares, because planning takes time too.
//!
//! In: the loads of one batch, and the cost of a plan. Out: the split to use, with a [`ReuseDecision`]. The
//! *kept* split gives every replica its former share of the expert's tokens. It needs neither counts of other
//! ranks nor a solver.
//!
//! **The rule.** No split of the batch can take less than
//!
//! ```text
//! bound = max( ceil(sum_e f(N_e) / R),  max_r sum of f(N_e) over the experts that live on r alone )
//! ```
//!
//! Here `f` is the time of one expert ([`Roofline`]). Pieces of an expert never take less than the whole,
//! because each piece reads the weights and rounds up to tiles. The gain of planning is at most
//! `kept - bound`. The last plan missed its own bound by `miss`, so the predicted gain is
//! `kept - bound - miss`. If that does not exceed the cost of a plan, the old shares stay and `miss` decays.
//! Otherwise the batch is split again, and the faster of both splits is used.
//!
//! The rule limits the loss against planning every batch to `miss`, in this measure of time:
//! `used + paid <= new + plan + miss`. Without `miss` there would be no loss. However, bounds can be loose,
//! as in decode batches that are bound by weight reads. Such a rule would plan these batches repeatedly in
//! vain (docs/results.md has figures).

use super::cost_model::{CostModel as _, step_time};
use super::{Roofline, Split, SplitError};
use crate::place::Placement;

/// Rule of [`SplitterBuilder::lazy`](super::SplitterBuilder::lazy), with the shares of the last plan.
#[derive(Debug)]
pub(super) struct LazyRule {
    time: Roofline,
    plan_ps: u64,
    /// Tokens that each slot served in the last plan, `[R * S]`.
    shares: Vec<u64>,
    kept: Split,
    /// True if `shares` comes from a plan.
    planned: bool,
    /// Decayed distance of the last plan from its bound.
    miss_ps: u64,
}

/// Divisor of the decay. A batch that keeps its shares reduces the last miss by this part, so that planning
/// is eventually tried again.
const MISS_DECAY_DIVISOR: u64 = 32;

/// Decision on one batch, with times in picoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReuseDecision {
    /// True if a new split was computed.
    pub planned: bool,
    /// Lower bound of the time of every split of this batch.
    pub bound_ps: u64,
    /// Time with the old shares.
    pub kept_ps: u64,
    /// Predicted distance of a plan from the bound.
    pub miss_ps: u64,
    /// Time with the split that is used, without the time of planning.
    pub used_ps: u64,
}

impl ReuseDecision {
    /// Returns the predicted gain of planning.
    pub fn predicted_gain_ps(&self) -> u64 {
        (self.kept_ps - self.bound_ps).saturating_sub(self.miss_ps)
    }
}

impl LazyRule {
    /// Prepares a placement. `plan_ps` is the cost of a plan, from counting to redirected tokens, in
    /// picoseconds.
    pub(super) fn new(placement: &Placement, time: Roofline, plan_ps: u64) -> Self {
        let shares = vec![0; placement.slots().len()];
        Self { time, plan_ps, shares, kept: Split::default(), planned: false, miss_ps: 0 }
    }

    /// Splits one batch of `[E]` tokens per expert, by `solve` if that may pay.
    pub(super) fn split(
        &mut self,
        placement: &Placement,
        loads: &[u64],
        split: &mut Split,
        mut solve: impl FnMut(&mut Split) -> Result<(), SplitError>,
    ) -> Result<(), SplitError> {
        let per_rank = placement.slots_per_rank();
        self.apply_old_shares(placement, loads);
        let kept_ps = step_time(&self.time, &self.kept.quotas, per_rank, &[]);
        let bound_ps = self.time_bound(placement, loads).min(kept_ps);
        let miss_ps = self.miss_ps;
        let mut decision = ReuseDecision { planned: false, bound_ps, kept_ps, miss_ps, used_ps: kept_ps };
        // The first batch has no old split to keep.
        if self.planned && decision.predicted_gain_ps() <= self.plan_ps {
            self.miss_ps -= self.miss_ps.div_ceil(MISS_DECAY_DIVISOR);
            split.clone_from(&self.kept);
            split.reuse = Some(decision);
            return Ok(());
        }
        solve(split)?;
        decision.planned = true;
        let new_ps = step_time(&self.time, &split.quotas, per_rank, &[]);
        self.miss_ps = new_ps.saturating_sub(bound_ps);
        if self.planned && kept_ps <= new_ps {
            split.clone_from(&self.kept);
        } else {
            decision.used_ps = new_ps;
            self.shares.clone_from(&split.quotas);
            self.planned = true;
        }
        split.reuse = Some(decision);
        Ok(())
    }

    /// Splits these loads by the old shares into `kept`. Each replica receives the growth of the running sum
    /// of shares, rounded down. An expert without tokens in the last plan goes to its first replica.
    fn apply_old_shares(&mut self, placement: &Placement, loads: &[u64]) {
        self.kept.reset(self.shares.len());
        for (expert, &load) in loads.iter().enumerate() {
            let copies = placement.replicas(expert);
            let whole: u128 = copies.iter().map(|&slot| u128::from(self.shares[slot as usize])).sum();
            let (mut sum, mut given) = (0u128, 0u64);
            for &slot in copies {
                sum += u128::from(self.shares[slot as usize]);
                // The result is at most `load`, because `sum` is at most `whole`.
                let upto = (u128::from(load) * sum).checked_div(whole).map_or(load, |upto| upto as u64);
                self.kept.quotas[slot as usize] = upto - given;
                given = upto;
            }
        }
        self.kept.sum_ranks(placement.slots_per_rank());
    }

    fn time_bound(&self, placement: &Placement, loads: &[u64]) -> u64 {
        let mut fixed = vec![0u64; placement.ranks()];
        let mut all = 0u64;
        for (expert, &load) in loads.iter().enumerate() {
            let time = self.time.expert_ps(load);
            all = all.saturating_add(time);
            let copies = placement.replicas(expert);
            let home = placement.rank_of(copies[0]);
            if copies.iter().all(|&slot| placement.rank_of(slot) == home) {
                fixed[home] = fixed[home].saturating_add(time);
            }
        }
        fixed.into_iter().fold(all.div_ceil(placement.ranks() as u64), u64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SplitMethod, Splitter};
    use super::*;
    use proptest::prelude::*;

    /// Returns a placement with expert 0 on both ranks, and experts 1 and 2 on one each.
    fn placement() -> Placement {
        Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap()
    }

    const TIME: Roofline = Roofline { read: 10, token: 1, tile: 1 };

    #[test]
    fn a_plan_is_made_where_it_can_pay_and_only_there() {
        let mut worth = Splitter::builder(placement()).lazy(TIME, 30).build().unwrap();
        let mut split = Split::default();
        // The first batch is planned: 100 tokens on each rank.
        worth.split(&[100, 20, 80], &mut split).unwrap();
        assert!(split.reuse.unwrap().planned);
        assert_eq!(split.rank_loads, [100, 100]);
        // The same shares give 120 and 100, and the best split gives 110. The gain is at most 10, the cost is
        // 30.
        worth.split(&[100, 40, 80], &mut split).unwrap();
        let second = split.reuse.unwrap();
        assert_eq!((second.planned, second.predicted_gain_ps(), second.used_ps), (false, 10, 120));
        assert_eq!(split.quotas, [80, 40, 20, 80]);
        // The old shares give 180 and 40, so planning pays.
        worth.split(&[100, 100, 20], &mut split).unwrap();
        let third = split.reuse.unwrap();
        assert_eq!((third.planned, third.kept_ps, third.used_ps), (true, 180, 110));
    }

    proptest! {
        #[test]
        fn no_batch_takes_longer_than_if_it_were_planned(
            batches in prop::collection::vec(prop::collection::vec(0u64..200, 3), 1..20),
            plan in 0u64..60,
            (read, tile) in (0u64..50, 1u64..40),
        ) {
            let time = Roofline { read, token: 1, tile };
            let mut worth = Splitter::builder(placement()).lazy(time, plan).build().unwrap();
            let mut always = Splitter::new(placement(), SplitMethod::Exact).unwrap();
            let (mut split, mut new) = (Split::default(), Split::default());
            for loads in &batches {
                worth.split(loads, &mut split).unwrap();
                let decision = split.reuse.unwrap();
                always.split(loads, &mut new).unwrap();
                for (expert, &load) in loads.iter().enumerate() {
                    let served: u64 = placement().replicas(expert).iter().map(|&s| split.quotas[s as usize]).sum();
                    prop_assert_eq!(served, load);
                }
                let paid = if decision.planned { plan } else { 0 };
                prop_assert_eq!(decision.used_ps, step_time(&time, &split.quotas, 2, &[]));
                prop_assert!(decision.bound_ps <= step_time(&time, &new.quotas, 2, &[]));
                let most = step_time(&time, &new.quotas, 2, &[]) + plan + decision.miss_ps;
                prop_assert!(decision.used_ps + paid <= most);
            }
        }
    }
}
