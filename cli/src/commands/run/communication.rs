//! What ranks in processes of their own sent each other, as a table and a document.

use crate::cli::output::table;
use evenkeel::exec::Aggregate;
use evenkeel::exec::overlap::Overlap;
use evenkeel::exec::run::Outcome;
use evenkeel::exec::transport::{Purpose, Reach, Tally};
use serde_json::{Value, json};
use std::time::Duration;

/// What all ranks together sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// The transport's name.
    pub(super) name: &'static str,
    /// How device memory was handed on, where it was.
    pub(super) memory: Option<String>,
    /// What is worth knowing of how they run.
    pub(super) notices: Vec<String>,
    /// The hosts of the ranks, `[R]`.
    pub(super) hosts: Vec<String>,
    /// By rank.
    pub(super) tallies: Vec<Tally>,
    /// Whether splits were compared.
    pub(super) proved: bool,
    /// How tokens crossed to other nodes.
    pub(super) aggregate: Aggregate,
    /// Chunks in which tokens travelled.
    pub(super) chunks: usize,
    /// What the chunks were chosen by, where they were.
    pub(super) overlap: Option<Overlap>,
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

    /// Milliseconds of a layer on an average rank, dispatch to combine, and which share of that it waited for exchanges.
    fn layer(&self) -> (f64, f64) {
        let all = self.all();
        let waited = [Purpose::Dispatch, Purpose::Combine].map(|purpose| all.waited[purpose as usize]);
        let (layers, waited) = (all.layers.as_secs_f64(), waited.iter().sum::<Duration>().as_secs_f64());
        let share = if layers > 0.0 { waited / layers } else { 0.0 };
        (layers * 1e3 / all.runs.max(1) as f64, share)
    }

    /// The model's milliseconds of a layer in so many chunks.
    fn modelled(&self, chunks: usize) -> Option<f64> {
        self.overlap.map(|overlap| overlap.parts.modelled(chunks).as_secs_f64() * 1e3)
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
            "\n{} processes on {} over {}{}; sent by all ranks in {} steps, everything that ran; seconds of an average rank\n{}",
            self.tallies.len(),
            if self.hosts() == 1 { "1 host".to_owned() } else { format!("{} hosts", self.hosts()) },
            self.name,
            match self.memory.as_deref() {
                None => "",
                Some("staged") => ", device memory through the host's",
                Some(_) => ", device memory as it lies",
            },
            outcome.steps.len(),
            table(&header, Purpose::ALL.iter().map(row).collect(), 1)
        );
        // A GPU times its phases, not the host the layer.
        if all.runs > 0 {
            let (ms, share) = self.layer();
            text += &format!(
                "\nDispatch, experts and combine of a layer in {}: {ms:.3} ms, {:.1} % of it waiting for exchanges\n",
                if self.chunks == 1 { "1 chunk".to_owned() } else { format!("{} chunks", self.chunks) },
                share * 100.0
            );
        }
        if let (Some(overlap), Some(one), Some(chosen)) =
            (self.overlap, self.modelled(1), self.modelled(self.chunks))
        {
            text += &format!(
                "Modelled {chosen:.3} ms, in 1 chunk {one:.3} ms: an exchange takes {:.1} us and {:.3} ns per byte, the experts {:.3} ms\n",
                overlap.parts.link.latency as f64 / 1e3,
                overlap.parts.link.byte as f64 / 1e3,
                overlap.parts.experts as f64 / 1e9
            );
        }
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
        let (ms, share) = self.layer();
        json!({
            "aggregate": self.aggregate.to_string(),
            "chunks": self.chunks,
            "layer_ms": (all.runs > 0).then_some(ms),
            "communication_share": (all.runs > 0).then_some(share),
            "modelled": self.overlap.map(|overlap| json!({
                "layer_ms": self.modelled(self.chunks),
                "layer_ms_in_one_chunk": self.modelled(1),
                "exchange_us": overlap.parts.link.latency as f64 / 1e3,
                "byte_ns": overlap.parts.link.byte as f64 / 1e3,
                "dispatch_bytes": overlap.parts.bytes[0],
                "combine_bytes": overlap.parts.bytes[1],
                "experts_ms": overlap.parts.experts as f64 / 1e9,
            })),
            "name": self.name,
            "memory": self.memory,
            "notices": self.notices,
            "processes": self.tallies.len(),
            "hosts": self.hosts(),
            "plans_proved_identical": self.proved,
            "steps": outcome.steps.len(),
            "sent": Value::Object(Purpose::ALL.iter().map(purpose).collect()),
        })
    }
}
