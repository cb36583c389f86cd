//! The cost of a transfer of one expert, and the share of the time that transfers may take.
//!
//! Input is a shape, options, and the numbers of layers and experts. Output is [`CopyPrice`] and
//! [`CopyBudget`]. [`CopyPrice`] has the times of a transfer and of a batch, as [`MoveEconomics`] wants them.
//! A batch takes the time of the measured kernel if there is one for the stated model and GPU.
//! Every accepted step adds to [`CopyBudget`], and the busiest receiver of every plan is paid from it.
//! Defaults replace a model, GPU or link that the shape does not name. [`CopyStatus`] lists them.
//!
//! Time is counted in steps of an assumed duration, never by a clock. The same steps therefore give the same
//! decisions, whether live, after a restart, or in a replay at any speed.

use super::config::{ControllerConfig, ModelSpec, SpecError};
use crate::wire::decision::CopyStatus;
use evenkeel::cluster::{Cluster, Network};
use evenkeel::economics::MoveEconomics;
use evenkeel::gpu::GpuSpec;
use evenkeel::model::{MODELS, MoeModel};
use evenkeel::split::{Roofline, expert_roofline};
use evenkeel_cost::{CostDatabase, MeasuredExperts, RankKernel};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The default model, if none is named and no known model fits the experts and layers.
pub const DEFAULT_MODEL: &str = "deepseek-v3";
/// The default GPU.
pub const DEFAULT_GPU: &str = "h100";
/// The bandwidth at which a rank receives, in gigabits per second, if the machines of its GPU are not known.
pub const DEFAULT_LINK_GBPS: u64 = 100;
/// The default share of the time that transfers may take, if neither `copy_share` nor `move_cost` is stated.
pub const DEFAULT_COPY_SHARE: f64 = 0.01;
/// The number of steps whose unspent time is kept for later moves.
const CREDIT_STEPS: u64 = 16_384;

/// The time of one transfer, and of the batches to which it is compared.
#[derive(Debug, Clone)]
pub(super) struct CopyPrice {
    model: MoeModel,
    gpu: GpuSpec,
    link_gbps: u64,
    /// The keys of the shape that have default values.
    assumed: Vec<&'static str>,
    /// The times of transfers and batches by the data sheet, for a horizon of one step.
    economics: MoveEconomics,
    /// The measured kernel of a stated model on a stated GPU.
    measured: Option<Arc<MeasuredExperts>>,
}

impl CopyPrice {
    /// Returns the price for a shape, with defaults for all keys that it does not state.
    pub(super) fn from_spec(shape: &ModelSpec, layers: usize, experts: usize) -> Result<Self, SpecError> {
        let mut assumed = vec![];
        let model = if let Some(model) = shape.parsed_model()? {
            model
        } else {
            assumed.push("model");
            assumed_model(layers, experts).map_or_else(|| parse_named("model", DEFAULT_MODEL), Ok)?
        };
        let gpu = if let Some(gpu) = shape.parsed_gpu()? {
            gpu
        } else {
            assumed.push("gpu");
            parse_named("gpu", DEFAULT_GPU)?
        };
        let link_gbps = shape.link_gbps.unwrap_or_else(|| {
            assumed.push("link_gbps");
            assumed_link_gbps(shape, &gpu)
        });
        let economics = MoveEconomics::on_link(1, link_gbps, &model, &gpu).ok_or(SpecError::Value {
            key: "link_gbps",
            reason: format!("{link_gbps}: expected at least 1 gigabit per second"),
        })?;
        let is_stated = !assumed.contains(&"model") && !assumed.contains(&"gpu");
        let measured = if is_stated { find_kernel(&model, &gpu, &shape.cluster(experts)?) } else { None };
        Ok(Self { model, gpu, link_gbps, assumed, economics, measured: measured.map(Arc::new) })
    }

    /// Returns the measured kernel, if the model and the GPU are stated and one was measured.
    pub(super) fn measured(&self) -> Option<&MeasuredExperts> {
        self.measured.as_deref()
    }

    /// Returns the measured times of the experts on the ranks of a cluster, if there are any.
    pub(super) fn measured_times(&self, cluster: &Cluster) -> Option<RankKernel> {
        let of_cluster = |measured: &MeasuredExperts| {
            measured.times_on(&self.model, cluster.slots() as u64, cluster.ranks() as u64)
        };
        self.measured().map(of_cluster)
    }

    /// Returns the economics of one step on a cluster: by the measured kernel if there is one, else by the
    /// data sheet.
    fn economics_on(&self, cluster: &Cluster) -> MoveEconomics {
        let by_kernel = self.measured_times(cluster).and_then(|times| {
            MoveEconomics::with_expert_times(1, self.link_gbps, &self.model, Arc::new(times))
        });
        by_kernel.unwrap_or_else(|| self.economics.clone())
    }

    /// Returns the economics of a stated price, in perfectly balanced batches of one layer.
    ///
    /// A batch then takes a time in proportion to the tokens of its busiest rank.
    fn stated_economics(&self, cost: f64, batches: &[&[u64]], cluster: &Cluster) -> MoveEconomics {
        let tokens: u64 = batches.iter().flat_map(|batch| batch.iter()).sum();
        let per_rank = (tokens as f64 / (batches.len().max(1) * cluster.ranks()) as f64).max(1.0);
        let expert = expert_roofline(&self.model, &self.gpu);
        let reading = expert.read as f64 * cluster.slots_per_rank() as f64;
        let token = (reading / per_rank).max(expert.token as f64).max(1.0) as u64;
        let transfer_ps = (cost * per_rank * token as f64) as u64;
        MoveEconomics { steps: 1, transfer_ps, time: Arc::new(Roofline { read: 0, token, tile: 1 }) }
    }

    /// Returns the nanoseconds that one transfer takes.
    fn copy_ns(&self) -> u64 {
        self.economics.transfer_ps.div_ceil(1_000)
    }
}

/// Returns the bandwidth at which a rank receives on machines with this GPU, in gigabits per second. Ranks
/// that fit into one node use the link inside it. All others use the link between nodes.
fn assumed_link_gbps(shape: &ModelSpec, gpu: &GpuSpec) -> u64 {
    let Some(network) = Network::of_gpu(gpu.name) else { return DEFAULT_LINK_GBPS };
    let inside = shape.nodes == 1 && shape.ranks as u64 <= gpu.linked;
    let link = if inside { network.node } else { network.cross };
    let of_node = link.node_gb_s.map_or(f64::INFINITY, |all| all / gpu.linked as f64);
    ((link.gb_s.min(of_node) * 8.0) as u64).max(1)
}

/// Returns the built-in kernel of a model's experts, if one is measured on the GPU in the model's number
/// format.
fn find_kernel(model: &MoeModel, gpu: &GpuSpec, cluster: &Cluster) -> Option<MeasuredExperts> {
    let database = CostDatabase::builtin(gpu.name).ok()?;
    database.measured_experts(model, cluster.slots() as u64, cluster.ranks() as u64)
}

fn parse_named<T: std::str::FromStr<Err: std::fmt::Display>>(
    key: &'static str,
    name: &str,
) -> Result<T, SpecError> {
    name.parse().map_err(|error: T::Err| SpecError::Value { key, reason: error.to_string() })
}

/// Returns the known model with these experts and layers. If no model has exactly these layers, returns one
/// with more layers and these experts. Returns `None` if several candidates have experts of different sizes.
fn assumed_model(layers: usize, experts: usize) -> Option<MoeModel> {
    let alike = |fits: &dyn Fn(&MoeModel) -> bool| {
        let mut found = MODELS.into_iter().filter(|model| model.experts == experts && fits(model));
        let first = found.next()?;
        let same = |model: MoeModel| {
            (model.expert_bytes(), model.token_operations())
                == (first.expert_bytes(), first.token_operations())
        };
        found.all(same).then_some(first)
    };
    let whole = MODELS.iter().any(|model| model.experts == experts && model.layers == layers);
    if whole { alike(&|model| model.layers == layers) } else { alike(&|model| model.layers > layers) }
}

/// The elapsed time and the part of it that transfers took. A phase keeps it across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct CopyLedger {
    /// Nanoseconds of all accepted steps.
    passed: u64,
    /// Nanoseconds of all transfers after the first plan.
    spent: u64,
    /// Nanoseconds that transfers may take now. The value is negative after transfers that could not wait.
    available: i64,
}

/// The budget of time for transfers.
#[derive(Debug, Clone)]
pub(super) struct CopyBudget {
    pub(super) price: CopyPrice,
    move_cost: Option<f64>,
    step_ns: u64,
    /// The share of the time that transfers may take, or `None` without a limit.
    share: Option<f64>,
    /// The most nanoseconds that are kept unspent.
    most_ns: i64,
}

impl CopyBudget {
    /// Returns the budget of a phase that has accepted no step.
    pub(super) fn new(price: CopyPrice, options: &ControllerConfig) -> Self {
        let step_ns = (options.step_ms * 1e6) as u64;
        let share = options.copy_share_limit();
        let mut budget = Self { price, move_cost: options.move_cost, step_ns, share, most_ns: 0 };
        // The moves of one layer must fit, however long a transfer takes.
        let least = budget.transfer_ns(options.max_moves as u64);
        let kept = budget.per_step_ns().saturating_mul(CREDIT_STEPS).max(least);
        budget.most_ns = i64::try_from(kept).unwrap_or(i64::MAX);
        budget
    }

    fn per_step_ns(&self) -> u64 {
        self.share.map_or(0, |share| (share * self.step_ns as f64) as u64)
    }

    /// Returns the economics of a layer's moves within `steps` steps. `batches` are those on which the moves
    /// are judged.
    pub(super) fn layer_economics(&self, steps: u64, batches: &[&[u64]], cluster: &Cluster) -> MoveEconomics {
        let economics = match self.move_cost {
            Some(cost) => self.price.stated_economics(cost, batches, cluster),
            None => self.price.economics_on(cluster),
        };
        MoveEconomics { steps, ..economics }
    }

    /// Returns whether moves are weighed against their price: with a stated price, or on a stated link.
    /// Without both, moves are only bounded by their share of the time.
    pub(super) fn is_priced(&self) -> bool {
        self.move_cost.is_some() || !self.price.assumed.contains(&"link_gbps")
    }

    /// Returns the nanoseconds in which a rank receives this many experts.
    fn transfer_ns(&self, received: u64) -> u64 {
        self.price.copy_ns().saturating_mul(received)
    }

    /// Returns the milliseconds in which a rank receives this many experts.
    pub(super) fn transfer_ms(&self, received: u64) -> f64 {
        self.transfer_ns(received) as f64 / 1e6
    }

    /// Adds the time of one step.
    pub(super) fn accrue_step(&self, ledger: &mut CopyLedger) {
        ledger.passed = ledger.passed.saturating_add(self.step_ns);
        let more = i64::try_from(self.per_step_ns()).unwrap_or(i64::MAX);
        ledger.available = ledger.available.saturating_add(more).min(self.most_ns);
    }

    /// Pays for the experts that the busiest rank receives.
    pub(super) fn charge_transfers(&self, ledger: &mut CopyLedger, received: u64) {
        let time = self.transfer_ns(received);
        ledger.spent = ledger.spent.saturating_add(time);
        if self.share.is_some() {
            let time = i64::try_from(time).unwrap_or(i64::MAX);
            ledger.available = ledger.available.saturating_sub(time);
        }
    }

    /// Returns the number of experts that each rank may receive now, or `None` without a limit.
    pub(super) fn affordable_transfers(&self, ledger: &CopyLedger) -> Option<u64> {
        self.share?;
        let available = u64::try_from(ledger.available).unwrap_or(0);
        Some(available / self.price.copy_ns().max(1))
    }

    /// Returns the number of experts that each rank may receive after a quiet time.
    pub(super) fn most_transfers(&self) -> u64 {
        u64::try_from(self.most_ns).unwrap_or(0) / self.price.copy_ns().max(1)
    }

    /// Returns the public document of this budget.
    pub(super) fn status(&self, ledger: &CopyLedger) -> CopyStatus {
        let &CopyLedger { passed, spent, available } = ledger;
        CopyStatus {
            model: self.price.model.to_string(),
            gpu: self.price.gpu.to_string(),
            link_gbps: self.price.link_gbps,
            assumed: self.price.assumed.iter().map(|&key| key.to_owned()).collect(),
            expert_ms: self.transfer_ms(1),
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
    use evenkeel::split::CostModel;

    #[test]
    fn a_model_is_assumed_only_where_no_other_fits() {
        let name = |layers, experts| assumed_model(layers, experts).map(|model| model.name);
        assert_eq!(name(24, 32), Some("gpt-oss-20b"));
        assert_eq!(name(16, 32), Some("gpt-oss-20b"), "a part of the layers");
        assert_eq!(name(58, 256), Some("deepseek-v3"), "deepseek-r1 weighs the same");
        assert_eq!(name(36, 128), Some("gpt-oss-120b"));
        assert_eq!(name(3, 128), None, "three models have 128 experts");
        assert_eq!(name(40, 32), None, "more layers than the model has");
        assert_eq!(name(3, 16), None);
    }

    #[test]
    fn stated_models_have_measured_times() {
        let price = |text: &str| {
            let shape: ModelSpec = serde_json::from_str(text).unwrap();
            let cluster = shape.cluster(32).unwrap();
            (CopyPrice::from_spec(&shape, 24, 32).unwrap(), cluster)
        };
        let rank_ps = |(price, cluster): &(CopyPrice, Cluster)| {
            price.economics_on(cluster).time.rank_ps(&vec![64; cluster.slots_per_rank()], 1)
        };
        let stated = price(r#"{"ranks": 4, "model": "gpt-oss-20b", "gpu": "h100", "link_gbps": 100}"#);
        let assumed = price(r#"{"ranks": 4, "link_gbps": 100}"#);
        let kernel = stated.0.measured_times(&stated.1).unwrap();
        // 512 rows arrive and leave over 100 Gbit/s, with 4 bytes per number both ways together.
        let exchange = 512 * 2_880 * 4 * 8 * 10;
        assert_eq!(rank_ps(&stated), kernel.rank_ps(&[64; 8], 1) + exchange);
        assert!(assumed.0.measured().is_none());
        assert!(rank_ps(&assumed) < rank_ps(&stated), "kernels reach less than the data sheet's rates");
        // No kernel of this GPU is measured.
        let unmeasured = price(r#"{"ranks": 4, "model": "gpt-oss-20b", "gpu": "h800", "link_gbps": 100}"#);
        assert_eq!(rank_ps(&unmeasured), rank_ps(&assumed));
    }

    #[test]
    fn copies_never_take_more_than_their_share() {
        let shape: ModelSpec = serde_json::from_str(r#"{"ranks": 4}"#).unwrap();
        let price = CopyPrice::from_spec(&shape, 24, 32).unwrap();
        assert_eq!(price.assumed, ["model", "gpu", "link_gbps"]);
        // Four H100 share the links of a node: 302 GB/s.
        assert_eq!(price.copy_ns(), (49_766_400 * 8u64).div_ceil(2416));
        let budget = CopyBudget::new(price, &ControllerConfig::default());
        let mut ledger = CopyLedger::default();
        for at in 0..100_000u64 {
            budget.accrue_step(&mut ledger);
            // Spend all of the budget from time to time.
            if at % 977 == 0 {
                let received = budget.affordable_transfers(&ledger).unwrap();
                budget.charge_transfers(&mut ledger, received);
            }
            assert!(ledger.spent * 100 <= ledger.passed);
        }
        let status = budget.status(&ledger);
        assert!(status.spent_share > 0.009, "{status:?}");
        // Transfers that could not wait leave a debt.
        budget.charge_transfers(&mut ledger, 1000);
        assert_eq!(budget.affordable_transfers(&ledger), Some(0));
        assert!(ledger.available < 0);
    }
}
