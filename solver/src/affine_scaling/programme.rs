//! The programme of one component and its five iterations.
//!
//! In: a component and its loads. Out: the shares of its shared items, if the iteration is accepted. The
//! notation is that of the parent module. Rows are ranks, then items. Columns are shares, slacks, `T`, `z`.

use super::cholesky;
use super::components::RankComponent;
use crate::Hosts;

/// Constants of LPLB.
const ITERATIONS: usize = 5;
const STEP_SCALE: f32 = 0.999;
const ARTIFICIAL_COST: f32 = 1000.0;
const MAX_LAST_STEP: f32 = 0.1;
const MAX_ARTIFICIAL: f32 = 1e-4;
const MAX_RESIDUAL: f32 = 0.05;

/// Programme, its point and the normal equations, in memory that can be reused.
#[derive(Debug, Clone, Default)]
pub(super) struct AffineProgramme {
    ranks: usize,
    /// True without load. There is then nothing to solve, and even shares are optimal.
    idle: bool,
    /// Share columns, item by item.
    columns: Vec<ShareColumn>,
    /// Right-hand side `b` and the artificial column `g`, by row.
    rhs: Vec<f32>,
    artificial: Vec<f32>,
    point: PrimalPoint,
    /// `A X² Aᵀ` (lower triangle, row-major), and `A X² c`, which becomes `w`.
    normal: Vec<f32>,
    dual: Vec<f32>,
    /// Row of every rank.
    row_of: Vec<u32>,
}

/// Share of an item on a rank: 1 in the item's row, the item's scaled load in the rank's.
#[derive(Debug, Clone, Copy)]
struct ShareColumn {
    rank_row: u32,
    item_row: u32,
    load: f32,
    pair: u32,
}

/// Values of the unknowns.
#[derive(Debug, Clone, Default)]
struct PrimalPoint {
    shares: Vec<f32>,
    slacks: Vec<f32>,
    peak: f32,
    artificial: f32,
}

impl AffineProgramme {
    /// States the programme of a component, at the point where every unknown is one.
    pub(super) fn state_programme(&mut self, hosts: &Hosts, loads: &[u64], component: RankComponent<'_>) {
        self.ranks = component.ranks.len();
        let largest = component.items.iter().map(|&item| loads[item as usize]).max().unwrap_or(0);
        self.idle = largest == 0;
        if self.idle {
            return;
        }
        self.row_of.resize(hosts.ranks(), 0);
        for (&rank, row) in component.ranks.iter().zip(0..) {
            self.row_of[rank as usize] = row;
        }
        self.columns.clear();
        self.rhs.clear();
        self.rhs.resize(self.ranks, 0.0);
        for &item in component.items {
            let item = item as usize;
            let load = (loads[item] as f64 / largest as f64) as f32;
            if let [only] = hosts.ranks_of(item) {
                self.rhs[self.row_of[*only as usize] as usize] -= load;
                continue;
            }
            let item_row = self.rhs.len() as u32;
            self.rhs.push(1.0);
            for (&host, pair) in hosts.ranks_of(item).iter().zip(hosts.offset(item) as u32..) {
                let rank_row = self.row_of[host as usize];
                self.columns.push(ShareColumn { rank_row, item_row, load, pair });
            }
        }
        self.point.shares.clear();
        self.point.shares.resize(self.columns.len(), 1.0);
        self.point.slacks.clear();
        self.point.slacks.resize(self.ranks, 1.0);
        self.point.peak = 1.0;
        self.point.artificial = 0.0;
        // g = b − A·1: the rest of each row while the artificial column is still zero.
        self.artificial.clear();
        self.artificial.resize(self.rhs.len(), 0.0);
        self.compute_residual();
        std::mem::swap(&mut self.artificial, &mut self.dual);
        self.point.artificial = 1.0;
    }

    /// Iterates. If the result is accepted, it writes the shares and returns true.
    pub(super) fn run(&mut self, shares: &mut [f32]) -> bool {
        if self.idle || self.columns.is_empty() {
            return true;
        }
        let mut largest_step = f32::INFINITY;
        for _ in 0..ITERATIONS {
            self.form_normal_equations();
            if !cholesky::solve(&mut self.normal, &mut self.dual) {
                return false;
            }
            largest_step = self.take_step();
            // A direction without a positive entry is unbounded, and one that is not finite is useless.
            if !(largest_step > 0.0 && largest_step.is_finite()) {
                return false;
            }
        }
        self.compute_residual();
        let residual = self.dual.iter().fold(0.0f32, |worst, row| worst.max(row.abs()));
        let accepted = largest_step < MAX_LAST_STEP
            && (0.0..MAX_ARTIFICIAL).contains(&self.point.artificial)
            && residual < MAX_RESIDUAL;
        accepted && self.write_shares(shares)
    }

    /// Fills `normal` with the lower triangle of `A X² Aᵀ` and `dual` with `A X² c`.
    fn form_normal_equations(&mut self) {
        let rows = self.rhs.len();
        let peak = self.point.peak * self.point.peak;
        let artificial = self.point.artificial * self.point.artificial;
        self.normal.clear();
        self.dual.clear();
        for row in 0..rows {
            // The artificial column has an entry in every row, and the peak's column in every rank's row.
            let weight = artificial * self.artificial[row];
            let shift = if row < self.ranks { peak } else { 0.0 };
            let met = if row < self.ranks { row + 1 } else { 0 };
            self.normal.extend(self.artificial[..met].iter().map(|g| weight * g + shift));
            self.normal.extend(self.artificial[met..=row].iter().map(|g| weight * g));
            self.normal.resize((row + 1) * rows, 0.0);
            self.dual.push(ARTIFICIAL_COST * weight - shift);
        }
        for (row, slack) in self.point.slacks.iter().enumerate() {
            self.normal[row * rows + row] += slack * slack;
        }
        for (column, share) in self.columns.iter().zip(&self.point.shares) {
            let (rank, item) = (column.rank_row as usize, column.item_row as usize);
            let square = share * share;
            self.normal[rank * rows + rank] += column.load * column.load * square;
            self.normal[item * rows + rank] += column.load * square;
            self.normal[item * rows + item] += square;
        }
    }

    /// Takes one step by the duals `w` and returns `max d` over all variables.
    fn take_step(&mut self) -> f32 {
        let w = &self.dual;
        let share_cost =
            |column: &ShareColumn| -(column.load * w[column.rank_row as usize] + w[column.item_row as usize]);
        let (w_ranks, _) = w.split_at(self.ranks);
        let peak_cost = 1.0 + w_ranks.iter().sum::<f32>();
        let artificial_cost =
            ARTIFICIAL_COST - w.iter().zip(&self.artificial).map(|(w, g)| w * g).sum::<f32>();
        let point = &mut self.point;

        // `f32::max` ignores NaN, but this sum does not.
        let mut largest = f32::NEG_INFINITY;
        let mut poison = 0.0f32;
        let mut look = |d: f32| {
            largest = largest.max(d);
            poison += d * 0.0;
        };
        for (column, share) in self.columns.iter().zip(&point.shares) {
            look(share * share_cost(column));
        }
        for (slack, w) in point.slacks.iter().zip(w_ranks) {
            look(-slack * w);
        }
        look(point.peak * peak_cost);
        look(point.artificial * artificial_cost);
        let largest = largest + poison;
        if !(largest > 0.0 && largest.is_finite()) {
            return largest;
        }

        let alpha = STEP_SCALE / largest;
        for (column, share) in self.columns.iter().zip(&mut point.shares) {
            *share *= 1.0 - alpha * (*share * share_cost(column));
        }
        for (slack, w) in point.slacks.iter_mut().zip(w_ranks) {
            *slack *= 1.0 + alpha * (*slack * w);
        }
        point.peak *= 1.0 - alpha * (point.peak * peak_cost);
        point.artificial *= 1.0 - alpha * (point.artificial * artificial_cost);
        largest
    }

    /// Fills `dual` with `b − A x`.
    fn compute_residual(&mut self) {
        let point = &self.point;
        self.dual.clear();
        self.dual.extend(self.rhs.iter().zip(&self.artificial).map(|(b, g)| b - g * point.artificial));
        for (row, slack) in self.dual.iter_mut().zip(&point.slacks) {
            *row += point.peak - slack;
        }
        for (column, share) in self.columns.iter().zip(&point.shares) {
            self.dual[column.rank_row as usize] -= column.load * share;
            self.dual[column.item_row as usize] -= share;
        }
    }

    /// Writes the shares, each divided by the sum of its item's. Returns false and writes nothing if one is
    /// not a share.
    fn write_shares(&self, out: &mut [f32]) -> bool {
        if !self.point.shares.iter().all(|share| share.is_finite() && *share >= 0.0) {
            return false;
        }
        let mut rest = self.columns.as_slice();
        let mut shares = self.point.shares.as_slice();
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|column| column.item_row == first.item_row).count();
            // The item's row is met within RESIDUAL_BELOW, so the sum is near one.
            let sum: f32 = shares[..count].iter().sum();
            for (column, share) in rest[..count].iter().zip(shares) {
                out[column.pair as usize] = share / sum;
            }
            (rest, shares) = (&rest[count..], &shares[count..]);
        }
        true
    }
}
