//! Is a new split worth it? Sometimes the old one is good enough, and planning takes time too.
//!
//! In: one batch's loads, and what a plan costs. Out: the split to use, and why. The *kept* split gives every copy its
//! former share of the expert's tokens; it needs neither counts of other ranks nor a solver.
//!
//! **The rule.** No split of the batch can take less than
//!
//! ```text
//! bound = max( ceil(sum_e f(N_e) / R),  max_r sum of f(N_e) over the experts that live on r alone )
//! ```
//!
//! where `f` is the time of one expert ([`Roofline`]): pieces of an expert never take less than the whole, since each
//! reads the weights and rounds up to tiles for itself. The gain of planning is at most `kept - bound`. How much of that is
//! to be had the last plan tells: it missed its own bound by `miss`, so the predicted gain is `kept - bound - miss`. Where
//! that is not above the cost of a plan, the old shares stay, and `miss` is believed a little less; otherwise the batch is
//! split anew and the faster of both is used.
//!
//! So a batch never takes longer than if it were planned by more than the `miss` believed in (in this measure of time):
//! `used + paid <= new + plan + miss`. Without `miss` that would be "never longer", but where the bound is loose, as in
//! decode batches that weight reads bind, it would plan again and again for nothing (docs/results.md has figures).

use super::time::{expert_time, step_time};
use super::{Method, Roofline, Split, SplitError, Splitter};
use crate::place::Placement;

/// Splits batch after batch, but only where a new plan may pay.
#[derive(Debug)]
pub struct WorthIt {
    splitter: Splitter,
    time: Roofline,
    plan_ps: u64,
    /// Tokens that each slot served in the last plan, `[R * S]`.
    shares: Vec<u64>,
    kept: Split,
    /// Whether the `shares` are those of a plan.
    planned: bool,
    /// By how much the last plan missed its bound, as far as that is still believed.
    miss_ps: u64,
}

/// A batch that keeps its shares believes this part less in the last miss, so that planning is tried again in the end.
const FORGET: u64 = 32;

/// What was done with one batch, and what it takes, in picoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether a new split was computed.
    pub planned: bool,
    /// What no split of this batch can be faster than.
    pub bound_ps: u64,
    /// With the old shares.
    pub kept_ps: u64,
    /// By how much a plan was expected to miss the bound.
    pub miss_ps: u64,
    /// With the split that is used, without the time of planning.
    pub used_ps: u64,
}

impl Decision {
    /// What planning was expected to gain.
    pub fn predicted_gain_ps(&self) -> u64 {
        (self.kept_ps - self.bound_ps).saturating_sub(self.miss_ps)
    }
}

impl WorthIt {
    /// Prepares a placement; `plan_ps` is what a plan costs, from counting to redirected tokens, in picoseconds.
    ///
    /// # Errors
    /// When the solver cannot take the placement's shape.
    pub fn new(placement: Placement, time: Roofline, plan_ps: u64) -> Result<Self, SplitError> {
        let shares = vec![0; placement.slots().len()];
        let splitter = Splitter::new(placement, Method::Exact)?;
        Ok(Self { splitter, time, plan_ps, shares, kept: Split::default(), planned: false, miss_ps: 0 })
    }

    /// Splits one batch, `[E]` tokens per expert.
    ///
    /// # Errors
    /// As [`Splitter::split`].
    pub fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<Decision, SplitError> {
        let per_rank = self.splitter.placement().slots_per_rank();
        self.keep(loads)?;
        let kept_ps = step_time(&self.time, &self.kept.quotas, per_rank);
        let bound_ps = self.bound(loads).min(kept_ps);
        let miss_ps = self.miss_ps;
        let mut decision = Decision { planned: false, bound_ps, kept_ps, miss_ps, used_ps: kept_ps };
        // The first batch has no old split to keep.
        if self.planned && decision.predicted_gain_ps() <= self.plan_ps {
            self.miss_ps -= self.miss_ps.div_ceil(FORGET);
            split.clone_from(&self.kept);
            return Ok(decision);
        }
        self.splitter.split(loads, split)?;
        decision.planned = true;
        let new_ps = step_time(&self.time, &split.quotas, per_rank);
        self.miss_ps = new_ps.saturating_sub(bound_ps);
        if self.planned && kept_ps <= new_ps {
            split.clone_from(&self.kept);
        } else {
            decision.used_ps = new_ps;
            self.shares.clone_from(&split.quotas);
            self.planned = true;
        }
        Ok(decision)
    }

    /// The split of these loads by the old shares: copy by copy, what the running sum of shares grows by, rounded down.
    /// An expert that had no tokens goes to its first copy.
    fn keep(&mut self, loads: &[u64]) -> Result<(), SplitError> {
        let placement = self.splitter.placement();
        if loads.len() != placement.experts() {
            return Err(SplitError::Shape { given: loads.len(), experts: placement.experts() });
        }
        self.kept.quotas.clear();
        self.kept.quotas.resize(self.shares.len(), 0);
        self.kept.certificate.clear();
        for (expert, &load) in loads.iter().enumerate() {
            let copies = placement.copies(expert);
            let whole: u128 = copies.iter().map(|&slot| u128::from(self.shares[slot as usize])).sum();
            let (mut sum, mut given) = (0u128, 0u64);
            for &slot in copies {
                sum += u128::from(self.shares[slot as usize]);
                // At most `load`, since `sum` is at most `whole`.
                let upto = (u128::from(load) * sum).checked_div(whole).map_or(load, |upto| upto as u64);
                self.kept.quotas[slot as usize] = upto - given;
                given = upto;
            }
        }
        self.kept.rank_loads.clear();
        let ranks = self.kept.quotas.chunks(placement.slots_per_rank());
        self.kept.rank_loads.extend(ranks.map(|rank| rank.iter().fold(0u64, |a, &b| a.saturating_add(b))));
        Ok(())
    }

    fn bound(&self, loads: &[u64]) -> u64 {
        let placement = self.splitter.placement();
        let mut fixed = vec![0u64; placement.ranks()];
        let mut all = 0u64;
        for (expert, &load) in loads.iter().enumerate() {
            let time = expert_time(&self.time, load);
            all = all.saturating_add(time);
            let copies = placement.copies(expert);
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
    use super::*;
    use proptest::prelude::*;

    /// Expert 0 on both ranks, 1 and 2 on one each.
    fn placement() -> Placement {
        Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap()
    }

    const TIME: Roofline = Roofline { read: 10, token: 1, tile: 1 };

    #[test]
    fn a_plan_is_made_where_it_can_pay_and_only_there() {
        let mut worth = WorthIt::new(placement(), TIME, 30).unwrap();
        let mut split = Split::default();
        // The first batch is planned: 100 on each rank.
        assert!(worth.split(&[100, 20, 80], &mut split).unwrap().planned);
        assert_eq!(split.rank_loads, [100, 100]);
        // The same shares give 120 and 100 where 110 is best: at most 10 to gain, 30 to pay.
        let second = worth.split(&[100, 40, 80], &mut split).unwrap();
        assert_eq!((second.planned, second.predicted_gain_ps(), second.used_ps), (false, 10, 120));
        assert_eq!(split.quotas, [80, 40, 20, 80]);
        // 180 and 40: planning pays.
        let third = worth.split(&[100, 100, 20], &mut split).unwrap();
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
            let mut worth = WorthIt::new(placement(), time, plan).unwrap();
            let mut always = Splitter::new(placement(), Method::Exact).unwrap();
            let (mut split, mut new) = (Split::default(), Split::default());
            for loads in &batches {
                let decision = worth.split(loads, &mut split).unwrap();
                always.split(loads, &mut new).unwrap();
                for (expert, &load) in loads.iter().enumerate() {
                    let served: u64 = placement().copies(expert).iter().map(|&s| split.quotas[s as usize]).sum();
                    prop_assert_eq!(served, load);
                }
                let paid = if decision.planned { plan } else { 0 };
                prop_assert_eq!(decision.used_ps, step_time(&time, &split.quotas, 2));
                prop_assert!(decision.bound_ps <= step_time(&time, &new.quotas, 2));
                let most = step_time(&time, &new.quotas, 2) + plan + decision.miss_ps;
                prop_assert!(decision.used_ps + paid <= most);
            }
        }
    }
}
