//! The price of a copied expert, and how much of the time copies may take.
//!
//! In: a shape, options, a number of layers and experts. Out: [`CopyPrice`], the time of one copy against the time of one
//! balanced batch of a layer, and [`CopyBudget`], which every accepted step adds to and every move is paid from. Stated
//! defaults stand in for a model, GPU or link that the shape does not name, and [`CopyStatus`] says which.
//!
//! Time is counted in steps of an assumed length, never by a clock: the same steps give the same decisions, live, after a
//! restart and in a replay at any speed.

use super::options::{DecideOptions, Shape, SpecError};
use super::record::CopyStatus;
use crate::gpu::Gpu;
use crate::model::{MODELS, Model};
use crate::split::roofline;
use evenkeel_solver::objective::Roofline;
use serde::{Deserialize, Serialize};

/// The model that is assumed where none is named and none fits the experts and layers.
pub const DEFAULT_MODEL: &str = "deepseek-v3";
/// The GPU that is assumed where none is named.
pub const DEFAULT_GPU: &str = "h100";
/// Gigabits per second that a rank is assumed to receive where no link is stated.
pub const DEFAULT_LINK_GBPS: u64 = 100;
/// Share of the time that copies may take where neither `copy_share` nor `move_cost` is stated.
pub const DEFAULT_COPY_SHARE: f64 = 0.01;
/// Steps whose unspent time is kept for later moves.
const CREDIT_STEPS: u64 = 16_384;

/// Time of one copied expert, and of the batches that it is weighed against.
#[derive(Debug, Clone)]
pub(super) struct CopyPrice {
    model: Model,
    gpu: Gpu,
    link_gbps: u64,
    /// Keys of the shape that defaults stand in for.
    assumed: Vec<&'static str>,
    copy_ps: u64,
    time: Roofline,
}

impl CopyPrice {
    /// Returns the price for a shape, with defaults for all that it does not state.
    pub(super) fn of(shape: &Shape, layers: usize, experts: usize) -> Result<Self, SpecError> {
        let mut assumed = vec![];
        let model = if let Some(model) = shape.parsed_model()? {
            model
        } else {
            assumed.push("model");
            model_of(layers, experts).map_or_else(|| named("model", DEFAULT_MODEL), Ok)?
        };
        let gpu = if let Some(gpu) = shape.parsed_gpu()? {
            gpu
        } else {
            assumed.push("gpu");
            named("gpu", DEFAULT_GPU)?
        };
        let link_gbps = shape.link_gbps.unwrap_or_else(|| {
            assumed.push("link_gbps");
            DEFAULT_LINK_GBPS
        });
        let copy_ps = model.expert_bytes().saturating_mul(8_000) / link_gbps.max(1);
        Ok(Self { model, gpu, link_gbps, assumed, copy_ps, time: roofline(&model, &gpu) })
    }

    /// Returns the price of one copy in perfectly balanced batches of one layer, by the tokens and slots of each rank.
    pub(super) fn in_batches(&self, tokens_per_rank: f64, slots_per_rank: usize) -> f64 {
        let reading = self.time.read as f64 * slots_per_rank as f64;
        self.copy_ps as f64 / (tokens_per_rank * self.time.token as f64).max(reading).max(1.0)
    }

    /// Returns the nanoseconds that one copy takes.
    fn copy_ns(&self) -> u64 {
        self.copy_ps.div_ceil(1_000)
    }
}

fn named<T: std::str::FromStr<Err: std::fmt::Display>>(
    key: &'static str,
    name: &str,
) -> Result<T, SpecError> {
    name.parse().map_err(|error: T::Err| SpecError::Value { key, reason: error.to_string() })
}

/// Returns the known model with these experts and layers, or, where only a part of the layers is there, with these experts. None where
/// several that differ in what an expert weighs would fit.
fn model_of(layers: usize, experts: usize) -> Option<Model> {
    let alike = |fits: &dyn Fn(&Model) -> bool| {
        let mut found = MODELS.into_iter().filter(|model| model.experts == experts && fits(model));
        let first = found.next()?;
        let same = |model: Model| {
            (model.expert_bytes(), model.token_operations())
                == (first.expert_bytes(), first.token_operations())
        };
        found.all(same).then_some(first)
    };
    let whole = MODELS.iter().any(|model| model.experts == experts && model.layers == layers);
    if whole { alike(&|model| model.layers == layers) } else { alike(&|model| model.layers > layers) }
}

/// Time that passed, and its part that went into copies; a lane keeps it across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct CopyLedger {
    /// Nanoseconds of all accepted steps.
    passed: u64,
    /// Nanoseconds of all copies after the first plan.
    spent: u64,
    /// Nanoseconds that copies may take now; negative after copies that could not wait.
    available: i64,
}

/// How much of the time copies may take.
#[derive(Debug, Clone)]
pub(super) struct CopyBudget {
    pub(super) price: CopyPrice,
    pub(super) ledger: CopyLedger,
    move_cost: Option<f64>,
    step_ns: u64,
    /// None: no limit.
    share: Option<f64>,
    /// Nanoseconds that are kept unspent at most.
    most_ns: i64,
}

impl CopyBudget {
    /// Returns the budget of a lane that has accepted no step.
    pub(super) fn of(price: CopyPrice, options: &DecideOptions) -> Self {
        let step_ns = (options.step_ms * 1e6) as u64;
        let share = options.share_of_copies();
        let mut budget = Self {
            price,
            ledger: CopyLedger::default(),
            move_cost: options.move_cost,
            step_ns,
            share,
            most_ns: 0,
        };
        // One layer's moves have to fit, however long a copy takes.
        let least = budget.time_of(options.max_moves);
        let kept = budget.per_step_ns().saturating_mul(CREDIT_STEPS).max(least);
        budget.most_ns = i64::try_from(kept).unwrap_or(i64::MAX);
        budget
    }

    /// Returns the same budget with time that passed and was spent before.
    pub(super) fn going_on(self, ledger: CopyLedger) -> Self {
        Self { ledger, ..self }
    }

    fn per_step_ns(&self) -> u64 {
        self.share.map_or(0, |share| (share * self.step_ns as f64) as u64)
    }

    /// Returns the nanoseconds of copies that go one after the other over one link.
    fn time_of(&self, moves: usize) -> u64 {
        self.price.copy_ns().saturating_mul(moves as u64)
    }

    /// Returns the milliseconds of copies that go one after the other over one link.
    pub(super) fn time_ms(&self, moves: usize) -> f64 {
        self.time_of(moves) as f64 / 1e6
    }

    /// Counts a step.
    pub(super) fn step(&mut self) {
        self.ledger.passed = self.ledger.passed.saturating_add(self.step_ns);
        let more = i64::try_from(self.per_step_ns()).unwrap_or(i64::MAX);
        self.ledger.available = self.ledger.available.saturating_add(more).min(self.most_ns);
    }

    /// Pays for moves.
    pub(super) fn pay(&mut self, moves: usize) {
        let time = self.time_of(moves);
        self.ledger.spent = self.ledger.spent.saturating_add(time);
        if self.share.is_some() {
            let time = i64::try_from(time).unwrap_or(i64::MAX);
            self.ledger.available = self.ledger.available.saturating_sub(time);
        }
    }

    /// Returns the moves that can be paid now; none where there is no limit.
    pub(super) fn affordable(&self) -> Option<usize> {
        self.share?;
        let available = u64::try_from(self.ledger.available).unwrap_or(0);
        Some(usize::try_from(available / self.price.copy_ns().max(1)).unwrap_or(usize::MAX))
    }

    /// Returns the document that people and programs read.
    pub(super) fn status(&self) -> CopyStatus {
        let CopyLedger { passed, spent, available } = self.ledger;
        CopyStatus {
            model: self.price.model.to_string(),
            gpu: self.price.gpu.to_string(),
            link_gbps: self.price.link_gbps,
            assumed: self.price.assumed.iter().map(|&key| key.to_owned()).collect(),
            expert_ms: self.time_ms(1),
            move_cost: self.move_cost,
            step_ms: self.step_ns as f64 / 1e6,
            copy_share: self.share,
            passed_ms: passed as f64 / 1e6,
            spent_ms: spent as f64 / 1e6,
            spent_share: spent as f64 / passed.max(1) as f64,
            available_ms: self.share.map(|_| available as f64 / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_assumed_only_where_no_other_fits() {
        let name = |layers, experts| model_of(layers, experts).map(|model| model.name);
        assert_eq!(name(24, 32), Some("gpt-oss-20b"));
        assert_eq!(name(16, 32), Some("gpt-oss-20b"), "a part of the layers");
        assert_eq!(name(58, 256), Some("deepseek-v3"), "deepseek-r1 weighs the same");
        assert_eq!(name(36, 128), Some("gpt-oss-120b"));
        assert_eq!(name(3, 128), None, "three models have 128 experts");
        assert_eq!(name(40, 32), None, "more layers than the model has");
        assert_eq!(name(3, 16), None);
    }

    #[test]
    fn copies_never_take_more_than_their_share() {
        let shape: Shape = serde_json::from_str(r#"{"ranks": 4}"#).unwrap();
        let price = CopyPrice::of(&shape, 24, 32).unwrap();
        assert_eq!(price.assumed, ["model", "gpu", "link_gbps"]);
        assert_eq!(price.copy_ns(), 49_766_400 * 8 / 100);
        let mut budget = CopyBudget::of(price, &DecideOptions::default());
        for at in 0..100_000u64 {
            budget.step();
            // Whatever can be paid is spent, now and then.
            if at % 977 == 0 {
                budget.pay(budget.affordable().unwrap());
            }
            assert!(budget.ledger.spent * 100 <= budget.ledger.passed);
        }
        assert!(budget.status().spent_share > 0.009, "{:?}", budget.status());
        // Copies that could not wait are a debt.
        budget.pay(1000);
        assert_eq!(budget.affordable(), Some(0));
        assert!(budget.ledger.available < 0);
    }
}
