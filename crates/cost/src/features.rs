//! Features of the kernel model: the times and sizes of which a kernel's time is a non-negative sum.
//!
//! In: a [`RankLoad`], a [`MoeShape`] and the figures of the GPU. Out: one number per [`Feature`], in
//! microseconds where the feature is a time. Every feature grows with the rows of every expert and with the
//! tokens, so a sum with non-negative coefficients does too. The arithmetic uses only additions, products,
//! quotients and maxima of `f64`, so every machine computes the same bits.
//!
//! The order of the features is the order in which a greedy search found them useful over 16 kernels. A fit
//! uses a prefix of it.

use crate::dtype::Dtype;
use crate::hardware::Hardware;
use crate::moe_shape::MoeShape;
use crate::rank_load::{RankLoad, TILE_ROWS};
use serde::{Deserialize, Serialize};

/// Part of a kernel's time, or a size that it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Feature {
    /// One: the launch floor.
    Launch,
    /// Time to read the weights of the active experts at peak bandwidth.
    WeightRead,
    /// Time to multiply all rows at the peak rate.
    Arithmetic,
    /// Time to move the hidden activations of all selections, remote ones too.
    SelectionHidden,
    /// Tiles of 16 rows, as full waves over the multiprocessors.
    Tile16Waves,
    /// Time to move the bytes of weights and local rows that exceed half of the L2 cache.
    BeyondL2Rows,
    /// One if there are more tokens than slots: kernels switch their configuration there.
    LargeBatch,
    /// Time to move the inner activations of all selections, remote ones too.
    SelectionIntermediate,
    /// Tiles of 64 rows, as full waves over the multiprocessors.
    Tile64Waves,
    /// Time to multiply tiles of 128 rows with matrices padded to multiples of 128.
    PaddedTile128,
    /// Time to multiply tiles of 8 to 64 rows, by the mean load of an expert.
    AdaptiveTile64,
    /// Time to move the hidden activations of all tokens.
    TokenHidden,
    /// Slots of the rank, empty ones too.
    Slots,
    /// Time to multiply tiles of 8 to 256 rows, by the mean load of an expert.
    AdaptiveTile256,
    /// Thousands of local rows.
    Rows,
    /// [`Feature::WeightRead`] if there are more tokens than slots.
    LargeBatchWeightRead,
    /// Experts of the layer: routing tables.
    Experts,
    /// Time to move the bytes of weights and all selections that exceed half of the L2 cache.
    BeyondL2Selections,
    /// Thousands of hidden elements: the serial loop of the first product.
    Hidden,
    /// Time to multiply tiles of 64 rows if a width is no multiple of 16.
    MisalignedTile64,
    /// Selections, at most 64: the path of small batches.
    SmallBatch,
    /// Time to move the hidden activations of the local rows.
    RowHidden,
    /// Time to multiply rows where every active expert has at least 128.
    Knee128,
    /// Active experts.
    ActiveExperts,
    /// Thousands of selections, remote ones too.
    Selections,
    /// The longer of reading the weights and four times the arithmetic.
    RooflineKnee,
    /// [`Feature::WeightRead`] if the inner width is no multiple of 128.
    MisalignedWeightRead,
    /// Active experts times thousands of inner elements.
    ActiveIntermediate,
    /// Thousands of inner elements: the serial loop of the last product.
    Intermediate,
    /// Active experts times thousands of hidden elements.
    ActiveHidden,
}

/// Number of features.
pub const FEATURE_COUNT: usize = 30;

impl Feature {
    /// All features, the most useful first.
    pub const ALL: [Feature; FEATURE_COUNT] = [
        Feature::Launch,
        Feature::WeightRead,
        Feature::Arithmetic,
        Feature::SelectionHidden,
        Feature::Tile16Waves,
        Feature::BeyondL2Rows,
        Feature::LargeBatch,
        Feature::SelectionIntermediate,
        Feature::Tile64Waves,
        Feature::PaddedTile128,
        Feature::AdaptiveTile64,
        Feature::TokenHidden,
        Feature::Slots,
        Feature::AdaptiveTile256,
        Feature::Rows,
        Feature::LargeBatchWeightRead,
        Feature::Experts,
        Feature::BeyondL2Selections,
        Feature::Hidden,
        Feature::MisalignedTile64,
        Feature::SmallBatch,
        Feature::RowHidden,
        Feature::Knee128,
        Feature::ActiveExperts,
        Feature::Selections,
        Feature::RooflineKnee,
        Feature::MisalignedWeightRead,
        Feature::ActiveIntermediate,
        Feature::Intermediate,
        Feature::ActiveHidden,
    ];
}

/// The constants of the features for one shape, number format and GPU. All times are microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FeatureScale {
    shape: MoeShape,
    /// Time to read one expert.
    read: f64,
    /// Time to multiply one row by an expert.
    row: f64,
    /// The same with matrices padded to multiples of 128.
    padded_row: f64,
    /// Time to move one bfloat16 number.
    element: f64,
    /// Time to move the bytes that stay in the L2 cache.
    cached: f64,
    /// Blocks of 128 columns of both products, per multiprocessor.
    blocks: f64,
}

impl FeatureScale {
    /// Computes the constants. `l2_share` is the part of the L2 cache that keeps weights between two runs
    /// of the layer: 0 if other layers run in between.
    pub(crate) fn new(shape: MoeShape, dtype: Dtype, hardware: &Hardware, l2_share: f64) -> Self {
        let bandwidth = hardware.bandwidth.max(1) as f64 / 1e6;
        let flops = hardware.flops(dtype).max(1) as f64 / 1e6;
        let (hidden, inner, matrices) =
            (shape.hidden as f64, shape.intermediate as f64, shape.matrices as f64);
        let pad = |width: u64| width.next_multiple_of(128) as f64;
        let first = shape.matrices.saturating_sub(1).saturating_mul(shape.intermediate);
        let blocks = first.div_ceil(128) + shape.hidden.div_ceil(128);
        Self {
            shape,
            read: matrices * hidden * inner * dtype.bytes_per_weight() / bandwidth,
            row: 2.0 * matrices * hidden * inner / flops,
            padded_row: 2.0 * matrices * pad(shape.hidden) * pad(shape.intermediate) / flops,
            element: 2.0 / bandwidth,
            cached: l2_share * hardware.l2_bytes as f64 / bandwidth,
            blocks: blocks as f64 / hardware.multiprocessors.max(1) as f64,
        }
    }

    /// Returns the roofline of the whole load: reading the active experts, or multiplying all rows at
    /// `share` of the peak rate.
    #[cfg(any(test, feature = "import"))]
    pub(crate) fn roofline(&self, load: &RankLoad, share: f64) -> f64 {
        (load.active as f64 * self.read).max(load.rows as f64 * self.row / share)
    }

    /// Returns the values of all features, in the order of [`Feature::ALL`].
    pub(crate) fn features(&self, load: &RankLoad) -> [f64; FEATURE_COUNT] {
        let shape = &self.shape;
        let (hidden, inner) = (shape.hidden as f64, shape.intermediate as f64);
        let selections = load.tokens.saturating_mul(shape.top_k);
        let (tokens, all) = (load.tokens as f64, selections as f64);
        let (active, rows) = (load.active as f64, load.rows as f64);
        let (read, arithmetic) = (active * self.read, rows * self.row);
        let large = f64::from(u8::from(load.tokens > shape.slots));
        let misaligned_16 =
            f64::from(u8::from(!(shape.intermediate.is_multiple_of(16) && shape.hidden.is_multiple_of(16))));
        let misaligned_128 = f64::from(u8::from(!shape.intermediate.is_multiple_of(128)));
        let beyond_l2 = |moved: f64| {
            let elements = moved * (hidden + 1.5 * inner) + tokens * hidden;
            (read + elements * self.element - self.cached).max(0.0)
        };
        let tiled = |height: u64| load.tiles_of(height) as f64 * height as f64;
        // Kernels choose the tile from the mean load that they assume, rounded up to a power of two.
        let mean = selections.div_ceil(shape.slots.max(1)).clamp(1, TILE_ROWS[TILE_ROWS.len() - 1]);
        let adaptive = |most: u64| tiled(mean.next_power_of_two().clamp(8, most)) * self.row;
        [
            1.0,
            read,
            arithmetic,
            all * hidden * self.element,
            load.tiles_of(16) as f64 * self.blocks,
            beyond_l2(rows),
            large,
            all * inner * self.element,
            load.tiles_of(64) as f64 * self.blocks,
            tiled(128) * self.padded_row,
            adaptive(64),
            tokens * hidden * self.element,
            shape.slots as f64,
            adaptive(256),
            rows / 1e3,
            read * large,
            shape.experts as f64,
            beyond_l2(all),
            hidden / 1e3,
            tiled(64) * self.row * misaligned_16,
            all.min(64.0),
            rows * hidden * self.element,
            load.rows_from_128 as f64 * self.row,
            active,
            all / 1e3,
            read.max(4.0 * arithmetic),
            read * misaligned_128,
            active * inner / 1e3,
            inner / 1e3,
            active * hidden / 1e3,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_case_by_hand() {
        // 10^6 bytes and 10^6 operations per microsecond: an expert of 2 x 16 x 8 bfloat16 numbers.
        let hardware = Hardware {
            bandwidth: 1_000_000_000_000,
            flops_16bit: 1_000_000_000_000,
            flops_8bit: 1,
            flops_4bit: 1,
            multiprocessors: 2,
            l2_bytes: 1_000,
        };
        let shape = MoeShape { hidden: 16, intermediate: 8, top_k: 2, experts: 4, slots: 2, matrices: 2 };
        let scale = FeatureScale::new(shape, Dtype::Bfloat16, &hardware, 0.5);
        let load = RankLoad::from_rows([3, 20], 12);
        let values = scale.features(&load);
        let value = |feature| values[Feature::ALL.iter().position(|&f| f == feature).unwrap()];
        let close = |feature, expected: f64| {
            let found: f64 = value(feature);
            assert!(
                (found - expected).abs() <= 1e-12 * expected.abs(),
                "{feature:?}: {found}, not {expected}"
            );
        };
        let (read, row) = (512.0 / 1e6, 512.0 / 1e6);
        close(Feature::Launch, 1.0);
        close(Feature::WeightRead, 2.0 * read);
        close(Feature::Arithmetic, 23.0 * row);
        close(Feature::SelectionHidden, 24.0 * 16.0 * 2.0 / 1e6);
        close(Feature::Tile16Waves, 3.0 * 2.0 / 2.0);
        // 1024 bytes of weights, 23 rows of 28 numbers, 12 tokens of 16 numbers, less 500 cached bytes.
        close(Feature::BeyondL2Rows, (1024.0 + 2.0 * (23.0 * 28.0 + 12.0 * 16.0) - 500.0) / 1e6);
        close(Feature::LargeBatch, 1.0);
        close(Feature::PaddedTile128, 256.0 * 2.0 * 2.0 * 128.0 * 128.0 / 1e6);
        // 24 selections on 2 slots: tiles of 16 rows.
        close(Feature::AdaptiveTile64, 48.0 * row);
        close(Feature::MisalignedTile64, 128.0 * row);
        close(Feature::Knee128, 256.0 * row);
        close(Feature::RooflineKnee, 4.0 * 23.0 * row);
        close(Feature::SmallBatch, 24.0);
        assert!((scale.roofline(&load, 0.5) - 46.0 * row).abs() < 1e-12);
    }
}
