//! The choice of copies as a mixed-integer programme, solved by HiGHS.
//!
//! In: a problem, a batch and a goal. Out: the value of the best plan, and whether it is proved. It is the
//! referee of [`CopySolver`](super::CopySolver) on small cases, and shares no code with it.
//!
//! ```text
//!   x_er in {0, 1}   rank r receives a copy of item e
//!   k_s  in {0, 1}   dynamic slot s keeps its item
//!   q_er >= 0        tokens of item e on rank r
//!   Σ_r q_er = load_e,   q_er <= load_e (x_er + k_er)   on ranks that are no static hosts
//!   Σ_e q_er <= T,       Σ_e x_er + Σ_s k_s <= slots_r
//! ```
//!
//! Whole tokens follow: for given copies, the quotas are a flow, so the least whole peak is the least peak,
//! rounded up.

use std::panic::{AssertUnwindSafe, catch_unwind};

use good_lp::solvers::SolutionStatus;
use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, Solution as _, SolverModel as _, Variable, variable};

use super::{CopyGoal, CopyProblem};

/// Value of the referee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MilpValue {
    /// Copies, peak in tokens, or time, as the goal asks.
    pub value: u64,
    /// True if no plan has a lower value.
    pub proved: bool,
}

/// Solves a small case. Returns `None` if no plan reaches the goal, or if HiGHS finds none in time.
pub fn solve_milp(
    problem: &CopyProblem,
    loads: &[u32],
    present: &[u32],
    goal: CopyGoal,
    seconds: f64,
) -> Option<MilpValue> {
    // An engine that panics has failed, and nothing of it is used afterwards.
    catch_unwind(AssertUnwindSafe(|| CopyModel::build(problem, loads, present, goal).run(goal, seconds)))
        .ok()
        .flatten()
}

struct CopyModel {
    variables: ProblemVariables,
    objective: Expression,
    rows: Vec<good_lp::Constraint>,
}

impl CopyModel {
    fn build(problem: &CopyProblem, loads: &[u32], present: &[u32], goal: CopyGoal) -> CopyModel {
        let (hosts, ranks) = (problem.hosts(), problem.hosts().ranks());
        let mut variables = ProblemVariables::new();
        let mut rows = vec![];
        let mut served = vec![Expression::default(); ranks];
        let mut used = vec![Expression::default(); ranks];
        let mut received = vec![Expression::default(); ranks];
        let mut kept: Vec<Vec<(u32, Variable)>> = vec![vec![]; ranks];
        let mut slot = 0;
        for (rank, &slots) in problem.slots().iter().enumerate() {
            for &item in &present[slot..slot + slots as usize] {
                if (item as usize) < hosts.items() {
                    let keeps = variables.add(variable().binary());
                    used[rank] += keeps;
                    kept[rank].push((item, keeps));
                }
            }
            slot += slots as usize;
        }
        let mut copies = Expression::default();
        let mut sent = vec![Expression::default(); ranks];
        for (item, &load) in loads.iter().enumerate().filter(|&(_, &load)| load > 0) {
            let mut sum = Expression::default();
            let statics = hosts.ranks_of(item);
            let mut made = Expression::default();
            for rank in 0..ranks {
                let tokens = variables.add(variable().min(0.0));
                sum += tokens;
                served[rank] += tokens;
                if statics.contains(&(rank as u32)) {
                    continue;
                }
                let mut open = Expression::default();
                if problem.slots()[rank] > 0 {
                    let copy = variables.add(variable().binary());
                    used[rank] += copy;
                    received[rank] += copy;
                    copies += copy;
                    made += copy;
                    open += copy;
                }
                for &(_, keeps) in kept[rank].iter().filter(|(own, _)| *own as usize == item) {
                    open += keeps;
                }
                rows.push((Expression::from(tokens) - f64::from(load) * open).leq(0.0));
            }
            rows.push(sum.eq(f64::from(load)));
            // Any static host may send.
            if let [only] = statics {
                sent[*only as usize] += made;
            } else {
                let mut all = Expression::default();
                for &rank in statics {
                    let part = variables.add(variable().integer().min(0.0));
                    sent[rank as usize] += part;
                    all += part;
                }
                rows.push((all - made).eq(0.0));
            }
        }
        let peak = variables.add(variable().integer().min(0.0));
        for (rank, (served, used)) in served.into_iter().zip(used).enumerate() {
            rows.push((served - peak).leq(0.0));
            rows.push(used.leq(f64::from(problem.slots()[rank])));
        }
        let objective = match goal {
            CopyGoal::FewestCopies { peak: target } => {
                rows.push(Expression::from(peak).leq(f64::from(target)));
                copies
            }
            CopyGoal::LowestPeak { copies: most } => {
                rows.push(copies.leq(f64::from(most)));
                peak.into()
            }
            CopyGoal::LeastTime(times) => {
                let exposed = variables.add(variable().min(0.0));
                let most_received = variables.add(variable().min(0.0));
                let hidden = times.hidden as f64;
                for count in &received {
                    rows.push((count.clone() - most_received).leq(0.0));
                }
                for (counts, each) in [(received, times.receive), (sent, times.send)] {
                    for count in counts {
                        rows.push((each as f64 * count - exposed).leq(hidden));
                    }
                }
                times.token as f64 * peak + exposed + times.read as f64 * most_received
            }
        };
        CopyModel { variables, objective, rows }
    }

    fn run(self, goal: CopyGoal, seconds: f64) -> Option<MilpValue> {
        let mut model = self
            .variables
            .minimise(self.objective.clone())
            .using(highs)
            .set_threads(1)
            .set_time_limit(seconds)
            .set_option("mip_feasibility_tolerance", 1e-9)
            .set_option("primal_feasibility_tolerance", 1e-9)
            .set_option("mip_rel_gap", 0.0)
            .set_option("mip_abs_gap", if matches!(goal, CopyGoal::LeastTime(_)) { 0.5 } else { 0.999 });
        for row in self.rows {
            model.add_constraint(row);
        }
        let solution = model.solve().ok()?;
        let proved = matches!(solution.status(), SolutionStatus::Optimal | SolutionStatus::GapLimit);
        Some(MilpValue { value: solution.eval(&self.objective).round().max(0.0) as u64, proved })
    }
}
