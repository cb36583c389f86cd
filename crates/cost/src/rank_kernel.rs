//! Time of one rank's experts, from the rows of every slot, by a fitted kernel.
//!
//! In: a [`KernelEntry`], the figures of its GPU, a [`MoeShape`] and rows per slot. Out: microseconds, or
//! the whole picoseconds of [`CostModel`]. The time never falls if an expert gets more rows.

use crate::database::{CostDatabase, CostError};
use crate::dtype::Dtype;
use crate::features::{FEATURE_COUNT, FeatureScale};
use crate::hardware::Hardware;
use crate::kernel_entry::{KernelEntry, KernelTable};
use crate::moe_shape::MoeShape;
use crate::rank_load::RankLoad;
use evenkeel::model::{MoeModel, Precision};
use evenkeel::split::CostModel;

/// State of the L2 cache when the layer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum CacheState {
    /// Other layers ran in between, so all weights come from memory. This is the state in a model.
    #[default]
    Cold,
    /// The same layer ran before, so small weights stay in the cache. This is the state in the
    /// measurements.
    Warm,
}

/// A fitted kernel on layers of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct RankKernel {
    scale: FeatureScale,
    shape: MoeShape,
    coefficients: [f64; FEATURE_COUNT],
    /// Time of the features that do not depend on the load, microseconds.
    floor: f64,
    /// Mean number of rows on a rank per token that enters it.
    rows_per_token: f64,
    /// Tokens that enter every rank at least.
    least_tokens: u64,
}

impl RankKernel {
    /// Creates the model of a kernel for a shape.
    pub fn new(entry: &KernelEntry, hardware: &Hardware, shape: MoeShape, cache: CacheState) -> Self {
        // The fit assumes that half of the cache keeps weights; the other half holds activations.
        let l2_share = match cache {
            CacheState::Cold => 0.0,
            CacheState::Warm => 0.5 * entry.l2_scale,
        };
        let scale = FeatureScale::new(shape, entry.dtype, hardware, l2_share);
        let coefficients = entry.coefficients_of(&shape);
        let mut kernel = Self {
            scale,
            shape,
            coefficients,
            floor: 0.0,
            rows_per_token: rows_per_token(&shape),
            least_tokens: 0,
        };
        kernel.floor = kernel.load_time_us(&RankLoad::default());
        kernel
    }

    /// Creates the model of a framework's kernel for a model's layer, with a cold cache. `slots` is the
    /// number of slots of all ranks. The kernel is that of [`CostDatabase::kernel_of_model`] in the table
    /// `moe`.
    ///
    /// # Errors
    /// Fails if the database has no kernel of the framework and number format.
    pub fn of_model(
        database: &CostDatabase,
        framework: &str,
        dtype: Dtype,
        model: &MoeModel,
        slots: u64,
        ranks: u64,
    ) -> Result<Self, CostError> {
        let entry = database.kernel_of_model(KernelTable::Moe, framework, dtype, model.into())?;
        let shape = MoeShape::of_model(model, slots, ranks);
        Ok(Self::new(entry, &database.hardware, shape, CacheState::Cold))
    }

    /// Creates the model of the kernel that [`CostDatabase::kernel`] chooses, with a cold cache.
    ///
    /// # Errors
    /// Fails if the database has no such kernel.
    pub fn find(
        database: &CostDatabase,
        framework: &str,
        dtype: Dtype,
        shape: MoeShape,
    ) -> Result<Self, CostError> {
        let entry = database.kernel(framework, dtype)?;
        Ok(Self::new(entry, &database.hardware, shape, CacheState::Cold))
    }

    /// Sets the number of tokens that enter the layer on every rank, for stacks that gather all tokens on
    /// all ranks. Without it, the tokens that enter are those with an expert on the rank, as after a
    /// dispatch.
    #[must_use]
    pub fn with_gathered_tokens(mut self, tokens: u64) -> Self {
        self.least_tokens = tokens;
        self
    }

    /// Returns the shape.
    pub fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// Returns the time of a rank without rows, in microseconds: the launch floor.
    pub fn launch_floor_us(&self) -> f64 {
        self.floor
    }

    /// Returns the time for rows per slot, in microseconds. `tokens` is the number of tokens that enter the
    /// layer on this rank. A token with several experts on the rank enters once.
    pub fn time_us(&self, rows: &[u64], tokens: u64) -> f64 {
        self.load_time_us(&RankLoad::from_rows(rows.iter().copied(), tokens))
    }

    /// Returns the time of a load, in microseconds.
    pub fn load_time_us(&self, load: &RankLoad) -> f64 {
        let features = self.scale.features(load);
        features.iter().zip(&self.coefficients).fold(0.0, |sum, (value, weight)| sum + value * weight)
    }

    /// Returns the expected number of tokens that enter a rank with these rows, if tokens choose experts
    /// evenly. Gathered tokens count if they are more. It is at least the rows of the fullest expert, since
    /// a token chooses an expert once.
    pub fn tokens_of_rows(&self, rows: u64, fullest: u64) -> u64 {
        let received = ((rows as f64 / self.rows_per_token).ceil() as u64).clamp(fullest.min(rows), rows);
        received.max(self.least_tokens)
    }

    fn picoseconds(us: f64) -> u64 {
        (us * 1e6).ceil() as u64
    }
}

/// Frameworks whose kernels stand for a model on a GPU, the first one that has its number format.
/// TensorRT-LLM's kernels come first, because their time depends on the rows of the rank alone. SGLang's
/// general kernels also pay for rows of other ranks.
const FRAMEWORKS: [&str; 3] = ["trtllm", "vllm", "sglang"];

/// Measured kernel of a model's experts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MeasuredExperts {
    /// Times of a rank.
    pub times: RankKernel,
    /// The kernel.
    pub entry: KernelEntry,
    /// Figures of the GPU.
    pub hardware: Hardware,
}

impl MeasuredExperts {
    fn new(entry: KernelEntry, hardware: Hardware, shape: MoeShape) -> Self {
        Self { times: RankKernel::new(&entry, &hardware, shape, CacheState::Cold), entry, hardware }
    }

    /// Returns the times of the same kernel on other slots of all ranks.
    pub fn times_on(&self, model: &MoeModel, slots: u64, ranks: u64) -> RankKernel {
        let shape = MoeShape::of_model(model, slots, ranks);
        RankKernel::new(&self.entry, &self.hardware, shape, CacheState::Cold)
    }
}

impl CostDatabase {
    /// Returns a framework's kernel for a model's experts in the model's precision, with a cold cache.
    /// `slots` is the number of slots of all ranks. `None` if no framework has one.
    pub fn measured_experts(&self, model: &MoeModel, slots: u64, ranks: u64) -> Option<MeasuredExperts> {
        let formats: &[Dtype] = match model.precision {
            Precision::Fp8 => &[Dtype::Fp8Block, Dtype::Fp8],
            _ => &[Dtype::Bfloat16],
        };
        let of = |framework: &&str| {
            formats.iter().find_map(|&dtype| {
                self.kernel_of_model(KernelTable::Moe, framework, dtype, model.into()).ok()
            })
        };
        let entry = FRAMEWORKS.iter().find_map(of)?.clone();
        Some(MeasuredExperts::new(entry, self.hardware, MoeShape::of_model(model, slots, ranks)))
    }
}

/// Returns the mean rows on a rank per token that enters it. Each token chooses `top_k` of the experts
/// evenly and without repetition. It is `top_k` on a single rank, and 1 on many.
fn rows_per_token(shape: &MoeShape) -> f64 {
    let (slots, experts) = (shape.slots as f64, shape.experts.max(1) as f64);
    let remote = (shape.experts.saturating_sub(shape.slots)) as f64;
    let none_local = (0..shape.top_k).fold(1.0, |chance, chosen| {
        let chosen = chosen as f64;
        chance * ((remote - chosen).max(0.0) / (experts - chosen).max(1.0))
    });
    let local = shape.top_k as f64 * (slots / experts).min(1.0);
    (local / (1.0 - none_local).max(f64::MIN_POSITIVE)).max(1.0)
}

impl CostModel for RankKernel {
    /// Returns the time of a rank with one active expert, less the launch floor. The sum over experts is
    /// therefore an upper estimate of a rank's time without its floor; [`CostModel::rank_ps`] is exact.
    fn expert_ps(&self, tokens: u64) -> u64 {
        if tokens == 0 {
            return 0;
        }
        let load = RankLoad::from_rows([tokens], tokens.max(self.least_tokens));
        Self::picoseconds((self.load_time_us(&load) - self.floor).max(0.0))
    }

    /// Returns the time of the kernel over all slots, with its launch floor. The tokens that enter follow
    /// from the rows by [`RankKernel::tokens_of_rows`]. No rows take no time.
    fn rank_ps(&self, slots: &[u64], speed: u32) -> u64 {
        let rows = slots.iter().fold(0u64, |sum, &count| sum.saturating_add(count));
        if rows == 0 {
            return 0;
        }
        let fullest = slots.iter().copied().max().unwrap_or(0);
        let time = self.time_us(slots, self.tokens_of_rows(rows, fullest));
        Self::picoseconds(time).div_ceil(u64::from(speed.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_follow_from_rows() {
        let shape = |experts, slots| MoeShape {
            hidden: 7168,
            intermediate: 2048,
            top_k: 8,
            experts,
            slots,
            matrices: 3,
        };
        assert!((rows_per_token(&shape(256, 256)) - 8.0).abs() < 1e-12);
        // Eight of 256 experts: 0.25 rows per token of all; 22.6 % of the tokens choose one of them.
        assert!((rows_per_token(&shape(256, 8)) - 1.11).abs() < 0.01);
        assert!((rows_per_token(&shape(256, 1)) - 1.0).abs() < 1e-9);
        assert!((rows_per_token(&shape(0, 0)) - 1.0).abs() < 1e-9);
    }
}
