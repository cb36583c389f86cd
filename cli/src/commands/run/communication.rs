//! Traffic between ranks in separate processes, as a table and a document.

use crate::render::table::render_table;
use evenkeel_exec::comm::{Distance, Purpose};
use evenkeel_exec::job::{JobStats, LayerTime};
use evenkeel_exec::run::RunReport;
use serde_json::{Value, json};

/// Traffic of all ranks together.
#[derive(Debug)]
pub(super) struct CommunicationStats {
    pub(super) stats: JobStats,
    /// Notices on the job for the user.
    pub(super) notices: Vec<String>,
}

impl CommunicationStats {
    pub(super) fn to_text(&self, outcome: &RunReport) -> String {
        let (stats, all) = (&self.stats, self.stats.total());
        let row = |&purpose: &Purpose| {
            let bytes = Distance::ALL.map(|distance| all.bytes(purpose, distance));
            let mut cells = vec![purpose.name().to_owned()];
            cells.extend(bytes.map(|bytes| format!("{:.3}", bytes as f64 / f64::from(1 << 20))));
            cells.push(format!("{:.3}", stats.seconds_waited(purpose)));
            cells
        };
        let header = ["", "own rank, MiB", "own node, MiB", "other nodes, MiB", "s in exchanges"];
        let mut text = format!(
            "\n{} processes on {} over {}{}; traffic of all ranks in {} steps, baselines included; seconds of an average rank\n{}",
            stats.traffic.len(),
            if stats.host_count() == 1 {
                "1 host".to_owned()
            } else {
                format!("{} hosts", stats.host_count())
            },
            stats.name,
            match stats.memory.as_deref() {
                None => "",
                Some("staged") => ", device memory through host memory",
                Some(_) => ", device memory directly",
            },
            outcome.steps.len(),
            render_table(&header, Purpose::ALL.iter().map(row).collect(), 1)
        );
        // On a GPU only the device's phases are timed, not the layer on the host.
        if let Some(LayerTime { ms, waiting_share, .. }) = stats.layer_time() {
            text += &format!(
                "\nDispatch, experts and combine of a layer in {}: {ms:.3} ms, {:.1} % of it waiting for exchanges\n",
                if stats.chunks == 1 { "1 chunk".to_owned() } else { format!("{} chunks", stats.chunks) },
                waiting_share * 100.0
            );
        }
        if let (Some(overlap), Some(one), Some(chosen)) =
            (stats.overlap, stats.modelled_ms(1), stats.modelled_ms(stats.chunks))
        {
            text += &format!(
                "Modelled {chosen:.3} ms, in 1 chunk {one:.3} ms: an exchange takes {:.1} us and {:.3} ns per byte, the experts {:.3} ms\n",
                overlap.parts.link.latency as f64 / 1e3,
                overlap.parts.link.byte as f64 / 1e3,
                overlap.parts.experts as f64 / 1e9
            );
        }
        if stats.verified {
            text += "\nAll ranks computed the same plans: the digests of all splits are equal\n";
        }
        text
    }

    pub(super) fn to_json(&self, outcome: &RunReport) -> Value {
        let (stats, all) = (&self.stats, self.stats.total());
        let purpose = |&purpose: &Purpose| {
            let [rank, node, other] = Distance::ALL.map(|distance| all.bytes(purpose, distance));
            let fields = json!({
                "own_rank_bytes": rank,
                "own_node_bytes": node,
                "other_nodes_bytes": other,
                "seconds": stats.seconds_waited(purpose),
            });
            (purpose.name().to_owned(), fields)
        };
        let layer_time = stats.layer_time();
        json!({
            "aggregate": stats.aggregate.to_string(),
            "chunks": stats.chunks,
            "layer_ms": layer_time.map(|time| time.ms),
            "communication_share": layer_time.map(|time| time.waiting_share),
            "modelled": stats.overlap.map(|overlap| json!({
                "layer_ms": stats.modelled_ms(stats.chunks),
                "layer_ms_in_one_chunk": stats.modelled_ms(1),
                "exchange_us": overlap.parts.link.latency as f64 / 1e3,
                "byte_ns": overlap.parts.link.byte as f64 / 1e3,
                "dispatch_bytes": overlap.parts.dispatch_bytes,
                "combine_bytes": overlap.parts.combine_bytes,
                "experts_ms": overlap.parts.experts as f64 / 1e9,
            })),
            "name": stats.name,
            "memory": stats.memory,
            "notices": self.notices,
            "processes": stats.traffic.len(),
            "hosts": stats.host_count(),
            "plans_proved_identical": stats.verified,
            "steps": outcome.steps.len(),
            "sent": Value::Object(Purpose::ALL.iter().map(purpose).collect()),
        })
    }
}
