//! The further tables of `simulate`: another goal, whether planning is worth it, how far tokens travel.

use super::output::table;
use super::simulate::SimulateArgs;
use evenkeel::simulate::{Aim, Config, Locality, Outcome, Reached, Worth, goals, locality, worth};
use evenkeel::split::{Keep, roofline};
use evenkeel::trace::{TokenTrace, Trace};
use serde_json::{Value, json};

/// What was asked for beyond the main table.
#[derive(Debug)]
pub(super) struct Further {
    goal: Option<(String, Vec<Reached>)>,
    worth: Option<(String, Vec<Worth>)>,
    locality: Option<Vec<Locality>>,
}

impl Further {
    pub(super) fn ask(
        args: &SimulateArgs,
        trace: &Trace,
        tokens: Option<&TokenTrace>,
        config: &Config,
        outcome: &Outcome,
    ) -> anyhow::Result<Further> {
        if !(args.plan_us >= 0.0 && args.plan_us < 1e9) {
            anyhow::bail!("--plan-us {}: expected 0 to 1e9 microseconds", args.plan_us);
        }
        let goal = match args.goal.goal() {
            Some((goal, name)) => {
                let top_k = args.goal.shared_expert.unwrap_or(1);
                Some((
                    format!("Measured by {name}; 1 is a perfect spread"),
                    goals(trace, config, outcome, &goal, top_k)?,
                ))
            }
            None => None,
        };
        let worth = match args.worth {
            Some(on) => {
                let plan_ps = (args.plan_us * 1e6).round() as u64;
                let rows = worth(trace, config, outcome, roofline(&on.model, &on.gpu), plan_ps)?;
                let title = format!(
                    "Microseconds per batch of one layer, {} on {}, {} us per plan",
                    on.model, on.gpu, args.plan_us
                );
                Some((title, rows))
            }
            None => None,
        };
        let locality = tokens.map(|tokens| locality(tokens, config, outcome)).transpose()?;
        Ok(Further { goal, worth, locality })
    }

    /// All of them, each under its title.
    pub(super) fn tables(&self, outcome: &Outcome, config: &Config) -> String {
        let mut text = String::new();
        if let Some((title, rows)) = &self.goal {
            text += &format!("\n{title}\n{}", goal_table(outcome, rows));
        }
        if let Some((title, rows)) = &self.worth {
            text += &format!("\n{title}\n{}", worth_table(outcome, rows));
        }
        if let Some(rows) = &self.locality {
            let nodes = config.cluster.nodes();
            text += &format!("\nWhere tokens are served, of {nodes} nodes\n{}", travel_table(outcome, rows));
        }
        text
    }

    pub(super) fn goal(&self, outcome: &Outcome) -> Option<Vec<Value>> {
        let (_, rows) = self.goal.as_ref()?;
        let row = |row: &Reached| {
            json!({
                "policy": outcome.planned[row.planned].policy,
                "split": aim(row),
                "imbalance": row.imbalance,
                "bound": row.bound,
                "at_bound": row.at_bound,
                "split_us": { "p50": row.split_us.p50, "p99": row.split_us.p99 },
            })
        };
        Some(rows.iter().map(row).collect())
    }

    pub(super) fn worth(&self, outcome: &Outcome) -> Option<Vec<Value>> {
        let (_, rows) = self.worth.as_ref()?;
        let row = |row: &Worth| {
            let us = |ps: u64| ps as f64 / 1e6;
            json!({
                "policy": outcome.planned[row.planned].policy,
                "batches": row.batches,
                "planned_batches": row.planned_batches,
                "even_us": us(row.even_ps),
                "always_us": us(row.always_ps),
                "rule_us": us(row.rule_ps),
                "bound_us": us(row.bound_ps),
            })
        };
        Some(rows.iter().map(row).collect())
    }

    pub(super) fn locality(&self, outcome: &Outcome) -> Option<Vec<Value>> {
        let rows = self.locality.as_ref()?;
        let row = |row: &Locality| {
            json!({
                "policy": outcome.planned[row.planned].policy,
                "split": choice(row.keep),
                "pairs": { "own_rank": row.traffic.own_rank, "own_node": row.traffic.own_node,
                           "elsewhere": row.traffic.elsewhere },
                "copies": { "tokens": row.copies.tokens, "to_ranks": row.copies.to_ranks,
                            "to_nodes": row.copies.to_nodes },
                "batches": row.batches,
                "sum_of_peaks": row.peaks,
            })
        };
        Some(rows.iter().map(row).collect())
    }
}

fn aim(row: &Reached) -> &'static str {
    match row.aim {
        Aim::Even => "even",
        Aim::Tokens => "exact in tokens",
        Aim::Goal => "for this goal",
    }
}

fn goal_table(outcome: &Outcome, reached: &[Reached]) -> String {
    let rows = reached.iter().map(|row| {
        let i = row.imbalance;
        let mut cells = vec![outcome.planned[row.planned].policy.clone(), aim(row).to_owned()];
        cells.extend([i.mean, i.p50, i.p95, i.max, row.bound.mean].map(|x| format!("{x:.3}")));
        cells.push(format!("{:.1}%", 100.0 * row.at_bound));
        cells.extend([row.split_us.p50, row.split_us.p99].map(|us| format!("{us:.1}")));
        cells
    });
    let header = ["policy", "split", "mean", "p50", "p95", "max", "bound", "at bound", "split us", "p99 us"];
    table(&header, rows.collect(), 2)
}

fn worth_table(outcome: &Outcome, worths: &[Worth]) -> String {
    let rows = worths.iter().map(|row| {
        let each = |ps: u64| format!("{:.2}", ps as f64 / 1e6 / row.batches.max(1) as f64);
        vec![
            outcome.planned[row.planned].policy.clone(),
            each(row.even_ps),
            each(row.always_ps),
            each(row.rule_ps),
            format!("{:.1}%", 100.0 * row.planned_batches as f64 / row.batches.max(1) as f64),
            each(row.bound_ps),
        ]
    });
    let header = ["policy", "even split", "always planned", "if it may pay", "planned", "bound"];
    table(&header, rows.collect(), 1)
}

fn choice(keep: Option<Keep>) -> &'static str {
    match keep {
        None => "peak",
        Some(Keep::Peak) => "peak, traffic",
        Some(Keep::Vector) => "peak, vector, traffic",
    }
}

fn travel_table(outcome: &Outcome, travels: &[Locality]) -> String {
    let rows = travels.iter().map(|row| {
        let share = |pairs: u64| format!("{:.1}%", 100.0 * pairs as f64 / row.traffic.pairs().max(1) as f64);
        let each = |copies: u64| format!("{:.3}", copies as f64 / row.copies.tokens.max(1) as f64);
        vec![
            outcome.planned[row.planned].policy.clone(),
            choice(row.keep).into(),
            share(row.traffic.own_rank),
            share(row.traffic.own_node),
            share(row.traffic.elsewhere),
            each(row.copies.to_ranks),
            each(row.copies.to_nodes),
            format!("{} of {}", row.batches, row.batches),
            row.peaks.to_string(),
        ]
    });
    let header = [
        "policy",
        "split",
        "own rank",
        "own node",
        "elsewhere",
        "to ranks",
        "to nodes",
        "quotas met",
        "sum of peaks",
    ];
    table(&header, rows.collect(), 2)
}
