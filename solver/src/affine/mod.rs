//! `affine5`: five iterations of primal affine scaling in single precision, for comparison.
//!
//! In: a problem with equal speeds and no base load, and the loads of one batch. Out: for every
//! (item, host) pair the *share* of the item that the host should take, and for every connected component
//! whether the iteration was accepted or even shares stand in for it.
//!
//! **Source.** The idea is DeepSeek's LPLB (2025), restated from its description; the method is Dikin's
//! primal affine scaling (1967). LPLB takes its step length over the last 32 variables only, so others may
//! turn negative; here the step looks at every variable. Like LPLB, each group of ranks that share items
//! is a programme of its own; unlike LPLB, an item may have any number of hosts.
//!
//! **The programme** of a component, loads divided by its largest item load; unknowns are the shares `x`,
//! a slack `s_r` per rank, the peak `T`, and one artificial variable `z`:
//!
//! ```text
//!   min  T + 1000 z
//!        Σ_e load_e · x_er + s_r − T + g_r z = −fixed_r      for every rank r
//!        Σ_r x_er                    + g_e z = 1             for every shared item e
//! ```
//!
//! where `g = b − A·1`, so that all unknowns equal to one solve it. One iteration solves
//! `(A X² Aᵀ) w = A X² c`, takes `d = x ∘ (c − Aᵀ w)` and scales `x` by `1 − α d` with
//! `α = 0.999 / max d`. The result is accepted if the last `max d < 0.1`, `0 ≤ z < 10⁻⁴` and no row is off by
//! more than 0.05; then every item's shares are divided by their sum, which the rows leave near one.
//!
//! **Cost** with `m` rows (ranks plus shared items of the component) and `p` pairs of shared items, per
//! iteration: `m³/3` flops for the Cholesky factor, `3 m²` for the artificial column's rank-one term and
//! the two triangular solves, and about `20 p + 10 m` for forming the rest and the step. At 8 ranks with two
//! redundant slots each (`m = 24`, `p = 32`) some 7 300, at 144 ranks (`m = 432`) 27.5 million.

mod cholesky;
mod components;
mod programme;

use crate::{Error, Problem};
use components::Components;
use programme::Programme;

/// Scratch memory of affine5. Reusable for any problem; allocates only on growth.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    components: Components,
    programme: Programme,
}

impl Workspace {
    /// Scratch memory for this problem.
    pub fn new(problem: &Problem) -> Workspace {
        let mut workspace = Workspace::default();
        workspace.components.find(problem.hosts());
        workspace
    }
}

/// The shares that affine5 gives: non-negative and adding up to one for every item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    /// The share of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub shares: Vec<f32>,
    /// For every component, in the order of its lowest rank: whether its shares are the iteration's (true)
    /// or even ones (false). A component without load, or without shared items, counts as accepted.
    pub accepted: Vec<bool>,
    /// The component of every rank: ranks are connected by the items they share.
    pub component: Vec<u32>,
}

/// Runs affine5 on every component.
///
/// # Errors
/// [`Error::AffineUnsupported`] if speeds differ or a rank has a base load; [`Error::Length`] and
/// [`Error::Overflow`] as [`solve`](crate::solve).
pub fn solve(problem: &Problem, loads: &[u64], workspace: &mut Workspace) -> Result<Shares, Error> {
    let mut shares = Shares::default();
    solve_into(problem, loads, workspace, &mut shares)?;
    Ok(shares)
}

/// As [`solve`], into memory that is kept from call to call.
///
/// # Errors
/// As [`solve`]; `out` is then left as it was.
pub fn solve_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut Workspace,
    out: &mut Shares,
) -> Result<(), Error> {
    problem.total(loads)?;
    let common = problem.speeds()[0];
    let differs = |(&speed, &base): (&u32, &u64)| speed != common || base != 0;
    if let Some(rank) = problem.speeds().iter().zip(problem.base()).position(differs) {
        return Err(Error::AffineUnsupported { rank });
    }
    let hosts = problem.hosts();
    workspace.components.find(hosts);

    // Even shares first: they stand wherever the iteration is not accepted.
    out.shares.clear();
    for item in 0..hosts.items() {
        let count = hosts.of(item).len();
        out.shares.extend(std::iter::repeat_n(1.0 / count as f32, count));
    }
    out.component.clear();
    out.component.extend_from_slice(workspace.components.of_ranks());
    out.accepted.clear();
    for index in 0..workspace.components.len() {
        workspace.programme.state(hosts, loads, workspace.components.get(index));
        out.accepted.push(workspace.programme.run(&mut out.shares));
    }
    Ok(())
}
