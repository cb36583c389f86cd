//! Statistics of a job: its hosts, and the traffic between its ranks.

use crate::backend::Aggregate;
use crate::comm::{CommError, ProcessGroup, Purpose, TrafficStats};
use crate::overlap::Overlap;
use std::collections::BTreeSet;
use std::time::Duration;

/// The statistics of all ranks of a job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobStats {
    /// Name of the communicator.
    pub name: &'static str,
    /// Form in which device memory was passed to the communicator, if it was.
    pub memory: Option<String>,
    /// Hosts of the ranks, `[R]`.
    pub hosts: Vec<String>,
    /// Traffic by rank.
    pub traffic: Vec<TrafficStats>,
    /// True if the ranks compared their splits.
    pub verified: bool,
    /// Path of tokens to other nodes.
    pub aggregate: Aggregate,
    /// Chunks in which tokens travelled.
    pub chunks: usize,
    /// Cost model by which the number of chunks was chosen, if it was.
    pub overlap: Option<Overlap>,
}

/// The time of a layer, from its dispatch to the end of its combine.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LayerTime {
    /// Milliseconds.
    pub ms: f64,
    /// The share of it spent waiting for exchanges.
    pub waiting_share: f64,
}

impl JobStats {
    /// Returns the traffic of all ranks together.
    pub fn total(&self) -> TrafficStats {
        self.traffic.iter().fold(TrafficStats::default(), TrafficStats::sum_with)
    }

    /// Returns the number of hosts.
    pub fn host_count(&self) -> usize {
        self.hosts.iter().collect::<BTreeSet<_>>().len()
    }

    /// Returns the seconds that an average rank spent in exchanges.
    pub fn seconds_waited(&self, purpose: Purpose) -> f64 {
        self.total().waited(purpose).as_secs_f64() / self.traffic.len().max(1) as f64
    }

    /// Returns the time of a layer on an average rank. Returns `None` if layers were not timed: on a GPU only
    /// phases are.
    pub fn layer_time(&self) -> Option<LayerTime> {
        let all = self.total();
        let waited = [Purpose::Dispatch, Purpose::Combine].map(|purpose| all.waited(purpose));
        let (layers, waited) = (all.layers.as_secs_f64(), waited.iter().sum::<Duration>().as_secs_f64());
        let waiting_share = if layers > 0.0 { waited / layers } else { 0.0 };
        (all.runs > 0).then(|| LayerTime { ms: layers * 1e3 / all.runs as f64, waiting_share })
    }

    /// Returns the predicted milliseconds of a layer with this number of chunks.
    pub fn modelled_ms(&self, chunks: usize) -> Option<f64> {
        self.overlap.map(|overlap| overlap.parts.modelled_time(chunks).as_secs_f64() * 1e3)
    }
}

/// Returns the traffic of all ranks.
pub(super) fn gather_traffic(group: &ProcessGroup) -> Result<Vec<TrafficStats>, CommError> {
    let own = group.traffic_stats();
    let numbers: Vec<u64> = own
        .bytes
        .iter()
        .flatten()
        .copied()
        .chain(own.waited.iter().chain([&own.layers]).map(|time| time.as_nanos() as u64))
        .chain([own.runs])
        .collect();
    let all = group.all_gather_u64(Purpose::Control, &numbers)?;
    let read = |numbers: &[u64]| {
        let mut traffic = TrafficStats::default();
        let (bytes, rest) = numbers.split_at(numbers.len() - traffic.waited.len() - 2);
        let (waited, rest) = rest.split_at(traffic.waited.len());
        traffic.bytes.iter_mut().flatten().zip(bytes).for_each(|(to, from)| *to = *from);
        traffic.waited.iter_mut().zip(waited).for_each(|(to, from)| *to = Duration::from_nanos(*from));
        (traffic.layers, traffic.runs) = (Duration::from_nanos(rest[0]), rest[1]);
        traffic
    };
    Ok(all.chunks_exact(numbers.len()).map(read).collect())
}
