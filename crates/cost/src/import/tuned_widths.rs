//! Shapes for which SGLang ships tuned tiles.
//!
//! In: GPU and kernel. Out: pairs of experts and inner width of a rank. SGLang's Triton kernel looks for a
//! file `E=EXPERTS,N=WIDTH,device_name=GPU.json` of tiles, and takes default tiles if there is none. The
//! pairs are those of the file names in the package `sglang` 0.5.14. They are exact: neither the hidden width
//! nor the experts per token matter. The pairs of A100 are the same in version 0.5.10, with which it was
//! measured.
//!
//! Only bfloat16 has two populations. H100 and H200 have the same arithmetic and different lists. With 4096
//! tokens and more, H100 takes 1.19 times as long as H200 where both have default tiles. It takes 0.72 times
//! as long where H100 alone is tuned, and 2.3 times where H200 alone is. With `fp8_block` these medians are
//! 1.18, 1.14 and 1.15, so the default tiles are as good as tuned ones.

use super::is_held_out;
use super::measurements::{MeasuredKernel, Measurement};
use crate::dtype::Dtype;
use crate::kernel_entry::has_tuned_tiles;
use std::collections::{BTreeMap, BTreeSet};

/// Layers with tuned tiles outside the held-out ones, without which a fit to them alone would be arbitrary.
const MIN_TUNED_LAYERS: usize = 10;

/// Experts of a rank, and the inner widths for which there are tuned tiles.
type KnownWidths = (u64, &'static [u64]);

const A100: &[KnownWidths] = &[
    (1, &[1792, 3584, 7168, 14336]),
    (8, &[1792, 2048, 3584, 4096, 7168]),
    (16, &[1344, 1792, 2688, 3584, 7168, 14336]),
    (64, &[640, 1280]),
    (257, &[64]),
];

const H100: &[KnownWidths] = &[
    (1, &[3072]),
    (8, &[1792, 2048, 3584, 4096, 7168]),
    (16, &[1024, 1344, 1856, 2048, 2688]),
    (20, &[2048]),
    (24, &[1024]),
    (32, &[224, 448, 896, 928, 1792, 1856]),
    (64, &[192, 320, 384, 464, 640, 768, 928, 1280, 1536, 1856, 2688]),
    (65, &[1536]),
    (128, &[192, 232, 352, 384, 464, 512, 704, 768, 928, 1344, 1856, 2688]),
    (144, &[512]),
    (256, &[672, 1344, 2688]),
    (512, &[64, 128, 336, 672, 1344, 2688]),
];

const H200: &[KnownWidths] = &[
    (8, &[1792, 2048, 3584, 4096, 7168, 14336]),
    (16, &[1024]),
    (20, &[1536]),
    (64, &[320, 640, 1280, 2560]),
    (128, &[192, 384, 704, 768]),
    (129, &[384]),
    (161, &[192]),
    (512, &[64, 128, 256]),
];

const B200: &[KnownWidths] = &[
    (16, &[1024, 1856, 2048]),
    (32, &[224, 448, 896, 928, 1792, 1856]),
    (64, &[192, 384, 464, 768, 928, 1536, 1856, 2688]),
    (128, &[232, 352, 464, 704, 928, 1344, 1856, 2688]),
    (256, &[256, 512, 672, 1344, 2688]),
    (512, &[128, 256, 336, 672, 1344, 2688]),
];

const L40S: &[KnownWidths] = &[(8, &[3584]), (128, &[928, 1856])];

/// Returns the inner widths with tuned tiles by the experts of a rank. There are none if too few layers with
/// them were measured.
pub(super) fn tuned_widths(gpu: &str, kernel: &MeasuredKernel) -> BTreeMap<u64, Vec<u64>> {
    let id = &kernel.id;
    if (id.kernel.as_str(), id.dtype) != ("sglang_fused_moe_triton", Dtype::Bfloat16) {
        return BTreeMap::new();
    }
    let known = match gpu {
        "a100" => A100,
        "h100" => H100,
        "h200" => H200,
        "b200" => B200,
        "l40s" => L40S,
        _ => &[],
    };
    let widths = known.iter().map(|&(experts, widths)| (experts, widths.to_vec())).collect();
    let is_trained =
        |row: &&Measurement| !is_held_out(id.table, row) && has_tuned_tiles(&widths, &row.rank_shape());
    let layers: BTreeSet<_> = kernel.rows.iter().filter(is_trained).map(Measurement::shape_key).collect();
    if layers.len() < MIN_TUNED_LAYERS { BTreeMap::new() } else { widths }
}
