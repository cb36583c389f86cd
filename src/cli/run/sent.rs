//! What ranks in processes of their own sent each other, as a table and a document.

use crate::cli::output::table;
use evenkeel::exec::run::Outcome;
use evenkeel::exec::transport::{Purpose, Reach, Tally};
use serde_json::{Value, json};

/// What all ranks together sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// The transport's name.
    pub(super) name: &'static str,
    /// The hosts of the ranks, `[R]`.
    pub(super) hosts: Vec<String>,
    /// By rank.
    pub(super) tallies: Vec<Tally>,
    /// Whether splits were compared.
    pub(super) proved: bool,
}

impl Sent {
    fn all(&self) -> Tally {
        self.tallies.iter().fold(Tally::default(), Tally::plus)
    }

    fn hosts(&self) -> usize {
        self.hosts.iter().collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Seconds that an average rank spent in exchanges.
    fn waited(&self, purpose: Purpose) -> f64 {
        self.all().waited[purpose as usize].as_secs_f64() / self.tallies.len().max(1) as f64
    }

    pub(super) fn text(&self, outcome: &Outcome) -> String {
        let all = self.all();
        let row = |&purpose: &Purpose| {
            let bytes = all.bytes[purpose as usize];
            let mut cells = vec![purpose.name().to_owned()];
            cells.extend(bytes.map(|bytes| format!("{:.3}", bytes as f64 / f64::from(1 << 20))));
            cells.push(format!("{:.3}", self.waited(purpose)));
            cells
        };
        let header = ["", "own rank, MiB", "own node, MiB", "other nodes, MiB", "s in exchanges"];
        let mut text = format!(
            "\n{} processes on {} over {}; sent by all ranks in {} steps, everything that ran; seconds of an average rank\n{}",
            self.tallies.len(),
            if self.hosts() == 1 { "1 host".to_owned() } else { format!("{} hosts", self.hosts()) },
            self.name,
            outcome.steps.len(),
            table(&header, Purpose::ALL.iter().map(row).collect(), 1)
        );
        if self.proved {
            text += "\nAll ranks made the same plans: digests of every split compared\n";
        }
        text
    }

    pub(super) fn document(&self, outcome: &Outcome) -> Value {
        let all = self.all();
        let purpose = |&purpose: &Purpose| {
            let [rank, node, other] = Reach::ALL.map(|reach| all.bytes[purpose as usize][reach as usize]);
            let fields = json!({
                "own_rank_bytes": rank,
                "own_node_bytes": node,
                "other_nodes_bytes": other,
                "seconds": self.waited(purpose),
            });
            (purpose.name().to_owned(), fields)
        };
        json!({
            "name": self.name,
            "processes": self.tallies.len(),
            "hosts": self.hosts(),
            "plans_proved_identical": self.proved,
            "steps": outcome.steps.len(),
            "sent": Value::Object(Purpose::ALL.iter().map(purpose).collect()),
        })
    }
}
