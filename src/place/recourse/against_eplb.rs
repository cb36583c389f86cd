//! Plans that EPLB does not beat under the split that will run: chosen on batches held back.
//!
//! In: the batches of a window. Out: [`Trust`]. A placement made for exact splits can be far above EPLB's where a stack splits
//! evenly, and a search for even splits fits its own batches. So every way to search is tried on one half of the window and
//! compared with EPLB, placed on the same half, on the other half, both ways round. EPLB's own placement is what is left where
//! no search holds.
//!
//! Two questions are answered. [`for_rule`]: the split is a fixed rule. A search has to be better than EPLB beyond noise.
//! [`for_any`]: the split is not known. Searches put more and more weight on the even split until they hold against EPLB under
//! it; of those with the same weight that do, the best under the exact split is taken.

use super::aim::Aim;
use super::choose::{self, FEWEST, HELD, LADDER, SCENARIOS, Trust, part};
use super::exact::Exact;
use super::rule_loads::{RuleLoads, placement_peaks};
use super::scenarios::Scenarios;
use super::score::{each, standard_error};
use super::seating::Seating;
use super::share_rule::ShareRule;
use super::spread::{self, Part};
use super::{Dice, Layer, dispersion, starts};
use crate::place::{Eplb, Placement, Ties};
use crate::split::{Method, StackDispatch};
use evenkeel_solver::Error;

/// One way to search where the split is not known.
struct Candidate {
    /// The weight of the even split's score, in sixteenths of the exact one's.
    weight: u64,
    /// Spreads to search with.
    spreads: &'static [&'static [Part]],
    /// Standard errors that its mean under the even split has to be below EPLB's, where batches are many. Searches that hold
    /// the even split dear are at worst a little above EPLB's; the others may be far above.
    errors: f64,
}

/// Ways to search, tried until one holds. Wide spreads dilute averages, so they are for the least weight only.
const CANDIDATES: [Candidate; 4] = [
    Candidate { weight: LEAST_WEIGHT, spreads: &[POOLED, LADDER[0], LADDER[1], LADDER[2]], errors: 1.5 },
    Candidate { weight: 8, spreads: &[POOLED, LADDER[0]], errors: 0.75 },
    Candidate { weight: 64, spreads: &[POOLED], errors: 0.0 },
    Candidate { weight: 512, spreads: &[POOLED], errors: 0.0 },
];

/// Standard errors that a search for a fixed rule alone has to be below EPLB, where batches are many.
const RULE_ERRORS: f64 = 1.5;

/// Standard errors where batches are few. What is compared is two placements made on halves of the window, so the error
/// between batches is not the whole of it.
const FEW_ERRORS: f64 = 3.0;

/// With fewer batches in a window they are few.
const FEW: usize = 64;

/// The least weight of the even split's score.
pub(super) const LEAST_WEIGHT: u64 = 2;

/// Single batches, and their average: where experts stray independently, the average says more than any batch.
const POOLED: &[Part] =
    &[part(30, 0, 0), part(30, 100, 0), Part { share: 40, tilt: 0, new: 0, pooled: true }];

/// Spreads for a fixed rule. What balances an average needs no caution about roles that nobody has seen change.
const RULE_LADDER: [&[Part]; 3] = [POOLED, LADDER[0], LADDER[1]];

/// Batches to search on, and batches to compare on.
struct Fold<'a> {
    seen: Vec<&'a [u64]>,
    held: Scenarios,
    /// What EPLB, placed on `seen`, adds to the score in each scenario of `held`; empty where EPLB has no such shape.
    eplb: Vec<u64>,
}

/// What placements of one way to search add to the score in every scenario held back.
struct Rows {
    exact: Vec<u64>,
    rule: Vec<u64>,
}

/// The placement of EPLB for these batches.
fn eplb(layer: &Layer<'_>, batches: &[&[u64]]) -> Option<Placement> {
    let total = |expert: usize| batches.iter().fold(0u64, |sum, batch| sum.saturating_add(batch[expert]));
    let totals: Vec<u64> = (0..layer.experts).map(total).collect();
    eplb_of(layer, &totals)
}

/// The placement of EPLB for these totals, `[E]`, where the slots divide over the ranks.
pub(super) fn eplb_of(layer: &Layer<'_>, totals: &[u64]) -> Option<Placement> {
    if !layer.cluster.is_even() {
        return None;
    }
    let loads: Vec<f32> = totals.iter().map(|&load| load as f32).collect();
    let (slots, ranks) = (layer.cluster.slots(), layer.cluster.ranks());
    let held = Eplb::new(1, Ties::LowestExpert).physical_to_logical(&loads, slots, 1, ranks).ok()?;
    let placement = Placement::new(layer.experts, ranks, held.into_iter().map(Some).collect()).ok()?;
    if layer.policy.split != Some(Method::Stack(StackDispatch::VllmAscend)) || placement.doubled() == 0 {
        return Some(placement);
    }
    // vllm-ascend refuses a rank that holds an expert twice.
    let mut seating = Seating::of(&placement, &layer.slots);
    starts::fill(&mut seating, totals);
    seating.placement().ok()
}

/// What a search minimises where EPLB's placement was the best and cannot be taken whole.
pub(super) fn rule_aim(layer: &Layer<'_>) -> Aim {
    match layer.aim() {
        Aim::Both(_) | Aim::Exact => Aim::Rule(Method::Even),
        rule => rule,
    }
}

/// How to plan where a fixed rule splits the batches.
///
/// # Errors
/// Where an expert has no rank; the caller has checked that all fit.
pub(super) fn for_rule(layer: &Layer<'_>, method: Method, dice: &mut Dice) -> Result<Trust, Error> {
    let folds = folds(layer, method, dice);
    let aim = Aim::Rule(method);
    let mut best: Option<(&[Part], u64, Vec<u64>)> = None;
    for spread in RULE_LADDER {
        let rows = judge(layer, &folds, spread, aim, dice)?;
        let score = layer.policy.objective.tail_sum(&rows.rule);
        if best.as_ref().is_none_or(|(_, least, _)| score < *least) {
            best = Some((spread, score, rows.rule));
        }
    }
    let Some((spread, _, rows)) = best else { return Ok(Trust::Eplb) };
    let eplb: Vec<u64> = folds.iter().flat_map(|fold| fold.eplb.iter().copied()).collect();
    let better = holds(&rows, &eplb, if few(layer) { FEW_ERRORS } else { RULE_ERRORS });
    Ok(if better { Trust::Search(spread.to_vec(), aim) } else { Trust::Eplb })
}

/// How to plan where the split is not known.
///
/// # Errors
/// As [`for_rule`].
pub(super) fn for_any(layer: &Layer<'_>, dice: &mut Dice) -> Result<Trust, Error> {
    let folds = folds(layer, Method::Even, dice);
    let objective = layer.policy.objective;
    let eplb: Vec<u64> = folds.iter().flat_map(|fold| fold.eplb.iter().copied()).collect();
    for Candidate { weight, spreads, errors } in CANDIDATES {
        let aim = Aim::Both(weight);
        let errors = if few(layer) { FEW_ERRORS } else { errors };
        let (mut held, mut rows) = (vec![], vec![]);
        for &spread in spreads {
            let judged = judge(layer, &folds, spread, aim, dice)?;
            if holds(&judged.rule, &eplb, errors) {
                held.push(spread);
                rows.push(judged.exact);
            }
        }
        if let Some(widest) = objective.as_good(&rows).iter().rposition(|&good| good) {
            return Ok(Trust::Search(held[widest].to_vec(), aim));
        }
    }
    for_rule(layer, Method::Even, dice)
}

/// Whether the mean of a row of scores is below EPLB's by a number of standard errors.
fn holds(row: &[u64], eplb: &[u64], errors: f64) -> bool {
    let (mean, error) = standard_error(row, eplb);
    eplb.is_empty() || mean <= -errors * error
}

/// Whether batches are too few to trust the errors between them.
fn few(layer: &Layer<'_>) -> bool {
    layer.batches.len() < FEW
}

/// Both halves of the window, each to be judged on the other, in blocks of time. Few batches cannot be halved: they are judged
/// on copies that stray from them.
fn folds<'a>(layer: &Layer<'a>, method: Method, dice: &mut Dice) -> Vec<Fold<'a>> {
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let fold = |seen: &[&'a [u64]], held: Scenarios| {
        let peaks = eplb(layer, seen)
            .map(|placement| placement_peaks(&held, &mut ShareRule::new(method, layer.cluster), &placement));
        let eplb = peaks.map_or_else(Vec::new, |peaks| each(&held, &peaks).collect());
        Fold { seen: seen.to_vec(), held, eplb }
    };
    if layer.batches.len() < FEWEST {
        let strayed = (&layer.batches[..], layer.strays);
        return vec![fold(&layer.batches, spread::scenarios(experts, ranks, strayed, LADDER[0], HELD, dice))];
    }
    let (first, second) = layer.batches.split_at(layer.batches.len() / 2);
    [(first, second), (second, first)]
        .map(|(seen, unseen)| {
            let judged = spread::evenly(unseen.len(), unseen.len().min(HELD)).map(|b| unseen[b]);
            fold(seen, Scenarios::new(experts, ranks, judged))
        })
        .into()
}

/// Searches on what every fold has seen, and judges on what it holds back.
fn judge(
    layer: &Layer<'_>,
    folds: &[Fold<'_>],
    spread: &[Part],
    aim: Aim,
    dice: &mut Dice,
) -> Result<Rows, Error> {
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let iterations = choose::iterations(layer);
    let mut rows = Rows { exact: vec![], rule: vec![] };
    for fold in folds {
        let strays = match fold.seen.len() {
            seen if seen >= FEWEST => 0.0,
            _ if folds.len() == 1 => layer.strays,
            _ => dispersion::fitted(&fold.seen),
        };
        let count = layer.policy.scenarios.min(SCENARIOS);
        let scenarios = spread::scenarios(experts, ranks, (&fold.seen, strays), spread, count, dice);
        let seating = layer.found(&scenarios, aim, iterations, dice.clone())?.seating;
        if aim.exact() {
            rows.exact.extend(each(&fold.held, &Exact::default().peaks(&seating, &fold.held)?));
        }
        if let Some(rule) = aim.rule(layer.cluster) {
            rows.rule.extend(each(&fold.held, RuleLoads::new(&fold.held, rule, &seating).peaks()));
        }
    }
    Ok(rows)
}
