//! `affine5`: five iterations of primal affine scaling in single precision, for comparison.
//!
//! In: a problem with equal speeds and no base load, and the loads of one batch. Out: the *share* of the item
//! for every (item, host) pair. For every connected component it also states whether the iteration was
//! accepted, or even shares replace it.
//!
//! **Source.** The idea is DeepSeek's LPLB (2025), restated from its description. The method is Dikin's
//! primal affine scaling (1967). LPLB computes its step length over the last 32 variables only, so others may
//! turn negative. Here the step considers every variable. As in LPLB, each group of ranks that share items is
//! a programme of its own. Unlike in LPLB, an item may have any number of hosts.
//!
//! **The programme** of a component has loads divided by its largest item load. Its unknowns are the shares
//! `x`, a slack `s_r` per rank, the peak `T`, and one artificial variable `z`:
//!
//! ```text
//!   min  T + 1000 z
//!        Σ_e load_e · x_er + s_r − T + g_r z = −fixed_r      for every rank r
//!        Σ_r x_er                    + g_e z = 1             for every shared item e
//! ```
//!
//! Here `g = b − A·1`, so that all unknowns equal to one solve the programme. One iteration solves
//! `(A X² Aᵀ) w = A X² c`, takes `d = x ∘ (c − Aᵀ w)` and scales `x` by `1 − α d` with `α = 0.999 / max d`.
//! The result is accepted if the last `max d < 0.1`, `0 ≤ z < 10⁻⁴`, and no row is off by more than 0.05.
//! Then every item's shares are divided by their sum, which the rows leave near one.
//!
//! **Cost.** Let a component have `m` rows (ranks plus shared items) and `p` pairs of shared items. An
//! iteration takes `m³/3` flops for the Cholesky factor. It takes `3 m²` for the artificial column's rank-one
//! term and the two triangular solves. It takes about `20 p + 10 m` to form the rest and the step. At 8 ranks
//! with two redundant slots each (`m = 24`, `p = 32`) these are some 7 300, at 144 ranks (`m = 432`) 27.5
//! million.

mod cholesky;
mod components;
mod programme;

use crate::{Problem, SolverError};
use components::ComponentSet;
use programme::AffineProgramme;

/// Scratch memory of affine5. It is reusable for any problem, and allocates only on growth.
#[derive(Debug, Clone, Default)]
pub struct AffineWorkspace {
    components: ComponentSet,
    programme: AffineProgramme,
}

impl AffineWorkspace {
    /// Creates scratch memory for this problem.
    pub fn new(problem: &Problem) -> AffineWorkspace {
        let mut workspace = AffineWorkspace::default();
        workspace.components.find_components(problem.hosts());
        workspace
    }
}

/// Shares of affine5: non-negative, and adding up to one for every item.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct AffineShares {
    /// Share of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub shares: Vec<f32>,
    /// For every component, in the order of its lowest rank: true if its shares are the iteration's, and
    /// false if they are even. A component without load, or without shared items, counts as accepted.
    pub accepted: Vec<bool>,
    /// Component of every rank. Ranks are connected by the items that they share.
    pub component: Vec<u32>,
}

/// Runs affine5 on every component.
///
/// # Errors
/// Returns [`SolverError::AffineUnsupported`] if speeds differ or a rank has a base load. Returns
/// [`SolverError::Length`] and [`SolverError::Overflow`] as [`solve`](crate::solve) does.
pub fn solve(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut AffineWorkspace,
) -> Result<AffineShares, SolverError> {
    let mut shares = AffineShares::default();
    solve_into(problem, loads, workspace, &mut shares)?;
    Ok(shares)
}

/// Runs affine5 as [`solve`] does, into memory that is reused from call to call.
///
/// # Errors
/// Fails as [`solve`] does, and then leaves `out` as it was.
pub fn solve_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut AffineWorkspace,
    out: &mut AffineShares,
) -> Result<(), SolverError> {
    problem.checked_total(loads)?;
    let common = problem.speeds()[0];
    let differs = |(&speed, &base): (&u32, &u64)| speed != common || base != 0;
    if let Some(rank) = problem.speeds().iter().zip(problem.base_loads()).position(differs) {
        return Err(SolverError::AffineUnsupported { rank });
    }
    let hosts = problem.hosts();
    workspace.components.find_components(hosts);

    // Even shares come first. They remain where the iteration is not accepted.
    out.shares.clear();
    for item in 0..hosts.items() {
        let count = hosts.ranks_of(item).len();
        out.shares.extend(std::iter::repeat_n(1.0 / count as f32, count));
    }
    out.component.clear();
    out.component.extend_from_slice(workspace.components.rank_components());
    out.accepted.clear();
    for index in 0..workspace.components.len() {
        workspace.programme.state_programme(hosts, loads, workspace.components.get(index));
        out.accepted.push(workspace.programme.run(&mut out.shares));
    }
    Ok(())
}
