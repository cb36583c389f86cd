//! The one splitter of batches, and its builder.
//!
//! In: a placement, and the parts of the splitter: method, objective, tie-break, reuse. Out: a [`Splitter`]
//! that splits batch after batch.

#[cfg(feature = "baselines")]
use super::affine5::Affine5Splitter;
use super::dynamic::{DynamicEngine, DynamicSlots};
use super::exact::ExactSplitter;
use super::lazy::LazyRule;
#[cfg(feature = "baselines")]
use super::lp::LpSplitter;
use super::min_traffic::LeastTrafficEngine;
use super::objective::ObjectiveEngine;
use super::stack::StackQuotas;
use super::{PrimaryObjective, Roofline, Split, SplitError, SplitMethod, SplitObjective, even};
use crate::cluster::Cluster;
use crate::place::{ExpertMove, Placement};
use evenkeel_solver::SolverError;

/// Parts of a [`Splitter`]. Without any, batches are split exactly by tokens on equal ranks.
#[derive(Debug, Clone)]
pub struct SplitterBuilder {
    placement: Placement,
    method: SplitMethod,
    nodes: usize,
    objective: Option<SplitObjective>,
    traffic: Option<(Cluster, PrimaryObjective)>,
    lazy: Option<(Roofline, u64)>,
    dynamic: Option<DynamicSlots>,
}

impl SplitterBuilder {
    /// Sets the method.
    #[must_use]
    pub fn method(self, method: SplitMethod) -> Self {
        Self { method, ..self }
    }

    /// Sets the number of nodes of equally many consecutive ranks. Only SGLang's rules depend on it.
    #[must_use]
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// Minimises another objective than the peak in tokens on equal ranks. [`Split::objective`] has its
    /// figures. If a shared expert joins the split, the loads have one more entry: its tokens.
    #[must_use]
    pub fn objective(self, objective: SplitObjective) -> Self {
        Self { objective: Some(objective), ..self }
    }

    /// Takes, among the splits of lowest peak, one with the least traffic between nodes, then between ranks.
    /// [`PrimaryObjective::Vector`] takes it among those with the most even load vector. Loads are
    /// `[source][expert]`, with one source per rank. [`Split::crossing`] has the traffic.
    #[must_use]
    pub fn least_traffic(self, cluster: &Cluster, keep: PrimaryObjective) -> Self {
        Self { traffic: Some((*cluster, keep)), ..self }
    }

    /// Splits a batch only if a new split may pay for `plan_ps`, the picoseconds from counting to redirected
    /// tokens. Otherwise every replica keeps its share of the expert's tokens. [`Split::reuse`] has the
    /// decision. `time` is the time of one expert.
    #[must_use]
    pub fn lazy(self, time: Roofline, plan_ps: u64) -> Self {
        Self { lazy: Some((time, plan_ps)), ..self }
    }

    /// Adds dynamic slots to every rank, which receive copies before each batch. [`Split::copies`] has them.
    /// The quotas of a batch then are `[R * (S + B)]`: on every rank, `B` dynamic slots follow the `S` static
    /// ones.
    #[must_use]
    pub fn dynamic_slots(self, slots: DynamicSlots) -> Self {
        Self { dynamic: Some(slots), ..self }
    }

    /// Prepares the splitter.
    ///
    /// # Errors
    /// Returns [`SplitError::Combination`] for parts that exclude each other, and
    /// [`SplitError::DynamicSlots`] if there are too many slots. Fails if the solver refuses
    /// the shape of the placement, if the ranks do not divide over the nodes, or if speeds or base loads do
    /// not fit the ranks.
    pub fn build(self) -> Result<Splitter, SplitError> {
        let Self { placement, method, nodes, objective, traffic, lazy, dynamic } = self;
        if nodes == 0 || !placement.ranks().is_multiple_of(nodes) {
            return Err(SplitError::Nodes { ranks: placement.ranks(), nodes });
        }
        let parts = [objective.is_some(), traffic.is_some(), lazy.is_some(), dynamic.is_some()];
        if parts.into_iter().filter(|&part| part).count() > 1 {
            return Err(SplitError::Combination(
                "an objective, least traffic, the reuse of old shares and dynamic slots exclude each other: \
                 expected one of them",
            ));
        }
        if (objective.is_some() || traffic.is_some() || dynamic.is_some()) && method != SplitMethod::Exact {
            return Err(SplitError::Combination(
                "an objective, least traffic or dynamic slots with another method: expected the exact split",
            ));
        }
        if let Some(slots) = dynamic {
            let (engine, placement) = DynamicEngine::new(&placement, slots)?;
            let engine = SplitEngine::Dynamic(Box::new(engine));
            return Ok(Splitter { placement, method, engine, lazy: None, revision: 0 });
        }
        let engine = match (objective, traffic) {
            (Some(goal), _) => SplitEngine::Objective(Box::new(ObjectiveEngine::new(&placement, goal)?)),
            (None, Some((cluster, keep))) => {
                SplitEngine::LeastTraffic(Box::new(LeastTrafficEngine::new(&placement, &cluster, keep)?))
            }
            (None, None) => SplitEngine::of_method(&placement, method, nodes)?,
        };
        let lazy = lazy.map(|(time, plan_ps)| Box::new(LazyRule::new(&placement, time, plan_ps)));
        Ok(Splitter { placement, method, engine, lazy, revision: 0 })
    }
}

/// Splitter of successive batches on one placement.
///
/// ```
/// use evenkeel::place::Placement;
/// use evenkeel::split::{Split, Splitter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let placement = Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)])?;
/// let mut splitter = Splitter::builder(placement).build()?;
/// let mut split = Split::default();
/// splitter.split(&[100, 40, 20], &mut split)?;
/// assert_eq!(split.rank_loads, [80, 80]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Splitter {
    placement: Placement,
    method: SplitMethod,
    engine: SplitEngine,
    lazy: Option<Box<LazyRule>>,
    /// Number of changes of the placement.
    revision: u64,
}

#[derive(Debug)]
enum SplitEngine {
    Even,
    #[cfg(feature = "baselines")]
    Lp(LpSplitter),
    Exact(Box<ExactSplitter>),
    #[cfg(feature = "baselines")]
    Affine5(Box<Affine5Splitter>),
    Stack(Box<StackQuotas>),
    Objective(Box<ObjectiveEngine>),
    LeastTraffic(Box<LeastTrafficEngine>),
    Dynamic(Box<DynamicEngine>),
}

impl SplitEngine {
    fn of_method(placement: &Placement, method: SplitMethod, nodes: usize) -> Result<Self, SplitError> {
        Ok(match method {
            SplitMethod::Even => SplitEngine::Even,
            #[cfg(feature = "baselines")]
            SplitMethod::Lp => SplitEngine::Lp(LpSplitter::new(placement)?),
            SplitMethod::Exact => SplitEngine::Exact(Box::new(ExactSplitter::new(placement)?)),
            #[cfg(feature = "baselines")]
            SplitMethod::Affine5 => SplitEngine::Affine5(Box::new(Affine5Splitter::new(placement)?)),
            #[cfg(not(feature = "baselines"))]
            SplitMethod::Lp | SplitMethod::Affine5 => return Err(SplitError::NotBuilt(method)),
            SplitMethod::Stack(stack) => {
                SplitEngine::Stack(Box::new(StackQuotas::new(placement, stack, nodes)))
            }
        })
    }

    /// Returns the number of loads of one batch.
    fn expected_loads(&self, placement: &Placement) -> usize {
        match self {
            SplitEngine::Objective(objective) => placement.experts() + usize::from(objective.goal().shared),
            SplitEngine::LeastTraffic(_) => placement.ranks() * placement.experts(),
            _ => placement.experts(),
        }
    }

    /// Splits one batch. All quotas of `split` are zero before.
    fn split(&mut self, placement: &Placement, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        match self {
            // These check the sum themselves.
            SplitEngine::Exact(exact) => return exact.split(loads, split),
            SplitEngine::Objective(objective) => return objective.split(placement, loads, split),
            SplitEngine::LeastTraffic(traffic) => return traffic.split(loads, split),
            SplitEngine::Dynamic(dynamic) => return dynamic.split(loads, split),
            _ if loads.iter().try_fold(0u64, |sum, &load| sum.checked_add(load)).is_none() => {
                return Err(SolverError::Overflow.into());
            }
            SplitEngine::Even => even::split(placement, loads, &mut split.quotas),
            #[cfg(feature = "baselines")]
            SplitEngine::Lp(lp) => lp.split(placement, loads, &mut split.quotas)?,
            #[cfg(feature = "baselines")]
            SplitEngine::Affine5(affine) => affine.split(placement, loads, &mut split.quotas)?,
            SplitEngine::Stack(stack) => stack.split(loads, &mut split.quotas),
        }
        split.sum_ranks(placement.slots_per_rank());
        Ok(())
    }
}

impl Splitter {
    /// Returns a builder for a placement.
    pub fn builder(placement: Placement) -> SplitterBuilder {
        SplitterBuilder {
            placement,
            method: SplitMethod::Exact,
            nodes: 1,
            objective: None,
            traffic: None,
            lazy: None,
            dynamic: None,
        }
    }

    /// Prepares a method for a placement on one node.
    ///
    /// # Errors
    /// Fails if the solver refuses the shape of the placement.
    pub fn new(placement: Placement, method: SplitMethod) -> Result<Self, SplitError> {
        Self::builder(placement).method(method).build()
    }

    /// Returns the placement on which batches are split. With dynamic slots, it is that of the last batch.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Returns the number of changes of the placement, by dynamic slots.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Splits one batch into `split`, whose memory is reused. `loads` are tokens per expert, `[E]`.
    /// [`SplitterBuilder::objective`] and [`SplitterBuilder::least_traffic`] state their own shapes.
    ///
    /// # Errors
    /// Fails if the loads have another shape, if their sum overflows, or if an LP engine fails.
    pub fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        let expected = self.engine.expected_loads(&self.placement);
        if loads.len() != expected {
            return Err(SplitError::Shape { given: loads.len(), experts: expected });
        }
        let (placement, engine, slots) = (&self.placement, &mut self.engine, self.placement.slots().len());
        let mut solve = |split: &mut Split| {
            split.reset(slots);
            engine.split(placement, loads, split)
        };
        match &mut self.lazy {
            None => solve(split)?,
            Some(lazy) => lazy.split(placement, loads, split, solve)?,
        }
        self.show_contents();
        Ok(())
    }

    /// Chooses copies for the loads that are expected of the next batch, `[E]`, so that other work can hide
    /// them. The next [`split`](Self::split) makes no other copies. Returns the copies, in the order of their
    /// slots.
    ///
    /// # Errors
    /// Returns [`SplitError::Combination`] without dynamic slots. Fails as [`split`](Self::split) does.
    pub fn prepare_copies(&mut self, expected: &[u64]) -> Result<&[ExpertMove], SplitError> {
        let SplitEngine::Dynamic(dynamic) = &mut self.engine else {
            return Err(SplitError::Combination("copies without dynamic slots: expected `dynamic_slots`"));
        };
        if expected.len() != self.placement.experts() {
            return Err(SplitError::Shape { given: expected.len(), experts: self.placement.experts() });
        }
        // The placement stays that of the last batch, whose tokens may still be redirected.
        dynamic.prepare(expected)?;
        Ok(self.prepared_copies().unwrap_or(&[]))
    }

    /// Returns the copies that [`prepare_copies`](Self::prepare_copies) has chosen since the last split.
    pub(crate) fn prepared_copies(&self) -> Option<&[ExpertMove]> {
        match &self.engine {
            SplitEngine::Dynamic(dynamic) => dynamic.prepared(),
            _ => None,
        }
    }

    /// Writes the contents of dynamic slots into the placement.
    fn show_contents(&mut self) {
        if let SplitEngine::Dynamic(dynamic) = &self.engine {
            self.revision += u64::from(self.placement.replace(dynamic.contents()));
        }
    }

    /// Checks that every token of the batch is served, by slots that hold its expert. For the exact method it
    /// also checks that the certificate proves the peak, and for least traffic that its prices prove it.
    ///
    /// # Errors
    /// Returns [`SplitError::Broken`] with the violated property, and [`SplitError::Combination`] between
    /// [`prepare_copies`](Self::prepare_copies) and the next split.
    pub fn check(&self, loads: &[u64], split: &Split) -> Result<(), SplitError> {
        let broken = |reason: String| Err(SplitError::Broken { method: self.method, reason });
        if self.prepared_copies().is_some() {
            return Err(SplitError::Combination("a check after the next copies: expected it before them"));
        }
        if let SplitEngine::LeastTraffic(traffic) = &self.engine {
            return traffic.check(loads).or_else(broken);
        }
        for (expert, &load) in loads.iter().enumerate().take(self.placement.experts()) {
            let served: u64 =
                self.placement.replicas(expert).iter().map(|&slot| split.quotas[slot as usize]).sum();
            if served != load {
                return broken(format!("expert {expert}: {served} of {load} tokens served"));
            }
        }
        if let Some(slot) =
            (0..split.quotas.len()).find(|&s| self.placement.slots()[s].is_none() && split.quotas[s] > 0)
        {
            return broken(format!("empty slot {slot} serves tokens"));
        }
        match &self.engine {
            // Old shares are no result of the solver.
            SplitEngine::Exact(exact) if self.lazy.is_none() => exact.check(loads, split).or_else(broken),
            SplitEngine::Dynamic(dynamic) => dynamic.check(loads).or_else(broken),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_exclude_each_other_are_refused() {
        let placement = Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap();
        let cluster = Cluster::new(2, 1, 3, 1).unwrap();
        let time = Roofline { read: 1, token: 1, tile: 1 };
        let builder = || Splitter::builder(placement.clone());
        for wrong in [
            builder().objective(SplitObjective::default()).lazy(time, 1),
            builder().objective(SplitObjective::default()).least_traffic(&cluster, PrimaryObjective::Peak),
            builder().least_traffic(&cluster, PrimaryObjective::Peak).lazy(time, 1),
            builder().method(SplitMethod::Even).objective(SplitObjective::default()),
        ] {
            assert!(matches!(wrong.build(), Err(SplitError::Combination(_))));
        }
        assert!(matches!(builder().nodes(3).build(), Err(SplitError::Nodes { ranks: 2, nodes: 3 })));
        assert!(builder().method(SplitMethod::Even).lazy(time, 1).build().is_ok());
    }
}
