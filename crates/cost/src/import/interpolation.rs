//! Interpolation between measured rows, for comparison with the model.
//!
//! In: the rows of a kernel, and the held-out ones among them. Out: a time per held-out row. The nearest
//! other shape, by the logarithms of its sizes, gives the times of the same distribution. Between its
//! numbers of tokens the time is linear over the logarithm of the tokens.

use super::measurements::Measurement;
use std::collections::BTreeMap;

/// Routing of a curve: exponent and slots under EPLB.
type CurveRouting = (u32, Option<u64>);

struct MeasuredShape {
    sizes: [f64; 5],
    held_out: bool,
    curves: BTreeMap<CurveRouting, Vec<(f64, f64)>>,
    rows: Vec<usize>,
}

/// Returns an interpolated time per held-out row. Other rows, and those without a curve, have none.
pub(super) fn interpolate(rows: &[Measurement], held_out: &[bool]) -> Vec<Option<f64>> {
    let mut shapes: BTreeMap<[u64; 7], MeasuredShape> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        let shape = shapes.entry(row.shape_key()).or_insert_with(|| MeasuredShape {
            sizes: log_sizes(row),
            held_out: held_out[at],
            curves: BTreeMap::new(),
            rows: Vec::new(),
        });
        shape.rows.push(at);
        let point = ((row.tokens as f64).log2(), row.time_us);
        shape.curves.entry(routing_of(row)).or_default().push(point);
    }
    for curve in shapes.values_mut().flat_map(|shape| shape.curves.values_mut()) {
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let mut times = vec![None; rows.len()];
    for shape in shapes.values().filter(|shape| shape.held_out) {
        let distance = |other: &MeasuredShape| -> f64 {
            other.sizes.iter().zip(&shape.sizes).map(|(a, b)| (a - b).abs()).sum()
        };
        let mut nearest: Vec<&MeasuredShape> = shapes.values().filter(|other| !other.held_out).collect();
        nearest.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        for &at in &shape.rows {
            let routing = routing_of(&rows[at]);
            // Slots under EPLB differ between shapes; any other number serves.
            let curve = nearest.iter().find_map(|other| {
                let same =
                    |found: &&CurveRouting| found.0 == routing.0 && found.1.is_some() == routing.1.is_some();
                other.curves.iter().find(|(found, _)| same(found)).map(|(_, curve)| curve)
            });
            times[at] = curve.and_then(|curve| time_on(curve, (rows[at].tokens as f64).log2()));
        }
    }
    times
}

fn routing_of(row: &Measurement) -> CurveRouting {
    (row.routing.exponent, row.routing.eplb_slots)
}

fn log_sizes(row: &Measurement) -> [f64; 5] {
    let shape = row.rank_shape();
    [shape.hidden, shape.intermediate, shape.top_k, shape.experts, shape.slots]
        .map(|size| (size as f64).log2())
}

/// Returns the time of a curve at a position. Outside, it is that of the nearest end.
fn time_on(curve: &[(f64, f64)], at: f64) -> Option<f64> {
    let after = curve.partition_point(|point| point.0 < at);
    match (after.checked_sub(1).and_then(|before| curve.get(before)), curve.get(after)) {
        (Some(low), Some(high)) => {
            Some(low.1 + (high.1 - low.1) * (at - low.0) / (high.0 - low.0).max(f64::MIN_POSITIVE))
        }
        (Some(end), None) | (None, Some(end)) => Some(end.1),
        (None, None) => None,
    }
}
