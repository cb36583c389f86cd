//! Traffic between ranks in separate processes, as a table and a document.

use crate::render::table::render_table;
use evenkeel_exec::Aggregate;
use evenkeel_exec::overlap::Overlap;
use evenkeel_exec::run::RunReport;
use evenkeel_exec::transport::{Distance, Purpose, TrafficStats};
use serde_json::{Value, json};
use std::time::Duration;

/// Traffic of all ranks together.
#[derive(Debug)]
pub(super) struct CommunicationStats {
    /// Name of the transport.
    pub(super) name: &'static str,
    /// Form in which device memory was passed to the transport, if it was.
    pub(super) memory: Option<String>,
    /// Notices on the job for the user.
    pub(super) notices: Vec<String>,
    /// Hosts of the ranks, `[R]`.
    pub(super) hosts: Vec<String>,
    /// Tallies by rank.
    pub(super) tallies: Vec<TrafficStats>,
    /// True if the ranks compared their splits.
    pub(super) verified: bool,
    /// Path of tokens to other nodes.
    pub(super) aggregate: Aggregate,
    /// Chunks in which tokens travelled.
    pub(super) chunks: usize,
    /// Cost model by which the number of chunks was chosen, if it was.
    pub(super) overlap: Option<Overlap>,
}

impl CommunicationStats {
    fn total(&self) -> TrafficStats {
        self.tallies.iter().fold(TrafficStats::default(), TrafficStats::sum_with)
    }

    fn host_count(&self) -> usize {
        self.hosts.iter().collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Returns the seconds that an average rank spent in exchanges.
    fn seconds_waited(&self, purpose: Purpose) -> f64 {
        self.total().waited[purpose as usize].as_secs_f64() / self.tallies.len().max(1) as f64
    }

    /// Returns the milliseconds of a layer on an average rank, dispatch to combine, and the share of it spent
    /// waiting for exchanges.
    fn layer_time(&self) -> (f64, f64) {
        let all = self.total();
        let waited = [Purpose::Dispatch, Purpose::Combine].map(|purpose| all.waited[purpose as usize]);
        let (layers, waited) = (all.layers.as_secs_f64(), waited.iter().sum::<Duration>().as_secs_f64());
        let share = if layers > 0.0 { waited / layers } else { 0.0 };
        (layers * 1e3 / all.runs.max(1) as f64, share)
    }

    /// Returns the predicted milliseconds of a layer with this number of chunks.
    fn modelled_ms(&self, chunks: usize) -> Option<f64> {
        self.overlap.map(|overlap| overlap.parts.modelled_time(chunks).as_secs_f64() * 1e3)
    }

    pub(super) fn to_text(&self, outcome: &RunReport) -> String {
        let all = self.total();
        let row = |&purpose: &Purpose| {
            let bytes = all.bytes[purpose as usize];
            let mut cells = vec![purpose.name().to_owned()];
            cells.extend(bytes.map(|bytes| format!("{:.3}", bytes as f64 / f64::from(1 << 20))));
            cells.push(format!("{:.3}", self.seconds_waited(purpose)));
            cells
        };
        let header = ["", "own rank, MiB", "own node, MiB", "other nodes, MiB", "s in exchanges"];
        let mut text = format!(
            "\n{} processes on {} over {}{}; traffic of all ranks in {} steps, baselines included; seconds of an average rank\n{}",
            self.tallies.len(),
            if self.host_count() == 1 { "1 host".to_owned() } else { format!("{} hosts", self.host_count()) },
            self.name,
            match self.memory.as_deref() {
                None => "",
                Some("staged") => ", device memory through host memory",
                Some(_) => ", device memory directly",
            },
            outcome.steps.len(),
            render_table(&header, Purpose::ALL.iter().map(row).collect(), 1)
        );
        // On a GPU only the device's phases are timed, not the layer on the host.
        if all.runs > 0 {
            let (ms, share) = self.layer_time();
            text += &format!(
                "\nDispatch, experts and combine of a layer in {}: {ms:.3} ms, {:.1} % of it waiting for exchanges\n",
                if self.chunks == 1 { "1 chunk".to_owned() } else { format!("{} chunks", self.chunks) },
                share * 100.0
            );
        }
        if let (Some(overlap), Some(one), Some(chosen)) =
            (self.overlap, self.modelled_ms(1), self.modelled_ms(self.chunks))
        {
            text += &format!(
                "Modelled {chosen:.3} ms, in 1 chunk {one:.3} ms: an exchange takes {:.1} us and {:.3} ns per byte, the experts {:.3} ms\n",
                overlap.parts.link.latency as f64 / 1e3,
                overlap.parts.link.byte as f64 / 1e3,
                overlap.parts.experts as f64 / 1e9
            );
        }
        if self.verified {
            text += "\nAll ranks computed the same plans: the digests of all splits are equal\n";
        }
        text
    }

    pub(super) fn to_json(&self, outcome: &RunReport) -> Value {
        let all = self.total();
        let purpose = |&purpose: &Purpose| {
            let [rank, node, other] = Distance::ALL.map(|reach| all.bytes[purpose as usize][reach as usize]);
            let fields = json!({
                "own_rank_bytes": rank,
                "own_node_bytes": node,
                "other_nodes_bytes": other,
                "seconds": self.seconds_waited(purpose),
            });
            (purpose.name().to_owned(), fields)
        };
        let (ms, share) = self.layer_time();
        json!({
            "aggregate": self.aggregate.to_string(),
            "chunks": self.chunks,
            "layer_ms": (all.runs > 0).then_some(ms),
            "communication_share": (all.runs > 0).then_some(share),
            "modelled": self.overlap.map(|overlap| json!({
                "layer_ms": self.modelled_ms(self.chunks),
                "layer_ms_in_one_chunk": self.modelled_ms(1),
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
            "hosts": self.host_count(),
            "plans_proved_identical": self.verified,
            "steps": outcome.steps.len(),
            "sent": Value::Object(Purpose::ALL.iter().map(purpose).collect()),
        })
    }
}
