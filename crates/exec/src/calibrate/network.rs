//! Measures the cost of exchanges between ranks on this machine, and fits the links that `simulate network`
//! takes.
//!
//! Input: a communicator. Output: [`LinkPoint`]s (the time of an exchange of a number of bytes) and a
//! [`Network`]. Every exchange sends a message to every other rank. Its cost without bytes is attributed to
//! the messages, so that it grows with the ranks. Links within nodes and between them are measured
//! separately. With only one node, the second is assumed equal to the first.

use crate::comm::{CallContext, Communicator, Purpose};
use crate::error::ExecError;
use crate::run::StepProgress;
use evenkeel::cluster::{Cluster, LinkParameters, NETWORK_FORMAT, Network};
use evenkeel::evaluate::SummaryStats;
use serde::Serialize;
use std::time::Instant;

/// Bytes that a rank sends to each other rank of the link.
const MESSAGE_BYTES: [usize; 8] = [0, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22];

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LinkPoint {
    /// True for links between nodes.
    pub cross: bool,
    /// Messages of a rank on this link.
    pub messages: u64,
    /// Bytes that it sends; it receives equally many.
    pub bytes: u64,
    /// Microseconds from the call of the exchange to its end: the median of the rounds, the mean of the
    /// ranks.
    pub us: f64,
}

/// Measures exchanges. Every rank must call it, and all get the same result.
///
/// # Errors
/// Fails if another rank is lost, or if there is only one rank.
pub fn measure_links(
    communicator: &dyn Communicator,
    cluster: &Cluster,
    rounds: usize,
    progress: &dyn StepProgress,
) -> Result<Vec<LinkPoint>, ExecError> {
    let (me, ranks) = (communicator.rank(), communicator.ranks());
    if ranks < 2 || rounds == 0 || ranks != cluster.ranks() {
        return Err(ExecError::Nothing(
            "nothing to measure: expected at least two ranks, as many as the cluster has, and a round".into(),
        ));
    }
    let at = CallContext { step: None, layer: None, purpose: Purpose::Control };
    let linked = |cross: bool, to: usize| to != me && (cluster.node_of(to) != cluster.node_of(me)) == cross;
    let links: Vec<bool> =
        [false, true].into_iter().filter(|&cross| (0..ranks).any(|to| linked(cross, to))).collect();
    let mut points = Vec::new();
    for (at_link, &cross) in links.iter().enumerate() {
        let messages = (0..ranks).filter(|&to| linked(cross, to)).count();
        for (at_size, size) in MESSAGE_BYTES.into_iter().enumerate() {
            let mut times = Vec::with_capacity(rounds);
            for round in 0..=rounds {
                let parcels = (0..ranks)
                    .map(|to| if linked(cross, to) { vec![1u8; size] } else { Vec::new() })
                    .collect();
                // All ranks begin together.
                communicator.all_to_all_v(at, vec![Vec::new(); ranks])?;
                let begun = Instant::now();
                communicator.all_to_all_v(at, parcels)?;
                // The first round touches memory and connections, and is discarded.
                if round > 0 {
                    times.push(begun.elapsed().as_secs_f64() * 1e6);
                }
            }
            let own = SummaryStats::from_values(times).p50;
            let replies = communicator.all_to_all_v(at, vec![own.to_le_bytes().to_vec(); ranks])?;
            let replies = replies.iter().map(|bytes| bytes.as_slice().try_into().map(f64::from_le_bytes));
            let all: Vec<f64> = replies.collect::<Result<_, _>>().map_err(|_| {
                ExecError::Nothing("a rank sent no time: all ranks must run one version".into())
            })?;
            let bytes = (messages * size) as u64;
            points.push(LinkPoint {
                cross,
                messages: messages as u64,
                bytes,
                us: SummaryStats::from_values(all).mean,
            });
            progress
                .report_steps(at_link * MESSAGE_BYTES.len() + at_size + 1, links.len() * MESSAGE_BYTES.len());
        }
    }
    Ok(points)
}

/// A fitted link.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LinkFit {
    /// The link.
    pub link: LinkParameters,
    /// The largest relative error of a point.
    pub error: f64,
}

/// Fits the link with the least sum of squared logarithms of measured over fitted times.
///
/// If a message costs as much as a fixed number of bytes, the best rate is a geometric mean. The search tries
/// numbers from a byte to a gigabyte, with steps that become finer around the best.
///
/// # Errors
/// Fails if there are fewer than two sizes.
pub fn fit_link(points: &[LinkPoint]) -> Result<LinkFit, ExecError> {
    let sound = |p: &LinkPoint| p.us > 0.0 && p.us.is_finite() && p.messages > 0;
    let mut sizes: Vec<u64> = points.iter().map(|p| p.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.len() < 2 || !points.iter().all(sound) {
        return Err(ExecError::Nothing(
            "nothing to fit: expected times of exchanges of several sizes".into(),
        ));
    }
    // Microseconds per byte, and the sum of squared deviations.
    let with = |worth: f64| {
        let log = |p: &LinkPoint| (p.us / (worth * p.messages as f64 + p.bytes as f64)).ln();
        let mean = points.iter().map(log).sum::<f64>() / points.len() as f64;
        (mean.exp(), points.iter().map(|p| (log(p) - mean).powi(2)).sum::<f64>())
    };
    let (mut best, mut step) = (0.0f64, 1.0f64);
    for (from, to) in std::iter::once((0, 21)).chain((0..40).map(|_| (-2, 2))) {
        let tried = (from..=to).map(|k| best + step * f64::from(k));
        let least = tried.min_by(|a, b| with(a.exp()).1.total_cmp(&with(b.exp()).1));
        best = least.unwrap_or(best);
        step /= 2.0;
    }
    let (slope, _) = with(best.exp());
    let link =
        LinkParameters { alpha_us: 0.0, message_us: best.exp() * slope, gb_s: 1e-3 / slope, node_gb_s: None };
    let off = points.iter().map(|p| (p.us / link.exchange_us(p.messages as f64, p.bytes as f64) - 1.0).abs());
    Ok(LinkFit { link, error: off.fold(0.0, f64::max) })
}

/// The largest relative errors of a fit, in a file `[node, cross]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "[f64; 2]")]
pub struct LinkErrors {
    /// That of the link within nodes.
    pub node: f64,
    /// That of the link between nodes.
    pub cross: f64,
}

impl From<LinkErrors> for [f64; 2] {
    fn from(LinkErrors { node, cross }: LinkErrors) -> Self {
        [node, cross]
    }
}

/// A network in its file format, with the measurements that were fitted. [`Network::from_json`] reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LinkFile {
    format: &'static str,
    /// The fitted network.
    #[serde(flatten)]
    pub network: Network,
    /// Ranks of the measurement.
    pub ranks: usize,
    /// Nodes of the measurement.
    pub nodes: usize,
    /// Largest relative errors of the fit.
    pub off: LinkErrors,
    /// The measurements.
    pub points: Vec<LinkPoint>,
}

impl LinkFile {
    /// Fits the measurements.
    ///
    /// # Errors
    /// Fails as [`fit_link`] does.
    pub fn from_points(name: String, cluster: &Cluster, points: Vec<LinkPoint>) -> Result<Self, ExecError> {
        let of =
            |cross: bool| -> Vec<LinkPoint> { points.iter().filter(|p| p.cross == cross).copied().collect() };
        let (node, cross) = match (of(false), of(true)) {
            (node, cross) if node.is_empty() => (fit_link(&cross)?, fit_link(&cross)?),
            (node, cross) if cross.is_empty() => (fit_link(&node)?, fit_link(&node)?),
            (node, cross) => (fit_link(&node)?, fit_link(&cross)?),
        };
        Ok(Self {
            format: NETWORK_FORMAT,
            network: Network { name, node: node.link, cross: cross.link },
            ranks: cluster.ranks(),
            nodes: cluster.nodes(),
            off: LinkErrors { node: node.error, cross: cross.error },
            points,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::ThreadCommunicator;
    use std::time::Duration;

    #[test]
    fn a_link_is_found_again() {
        let link = LinkParameters { alpha_us: 0.0, message_us: 4.0, gb_s: 2.5, node_gb_s: None };
        let point = |size: usize| {
            let bytes = 3 * size as u64;
            LinkPoint { cross: false, messages: 3, bytes, us: link.exchange_us(3.0, bytes as f64) }
        };
        let LinkFit { link: found, error: off } = fit_link(&MESSAGE_BYTES.map(point)).unwrap();
        assert!((found.message_us - 4.0).abs() < 1e-6 && (found.gb_s - 2.5).abs() < 1e-6 && off < 1e-6);
        assert!(fit_link(&[point(0)]).is_err());
        let text = serde_json::to_string(
            &LinkFile::from_points(
                "here".into(),
                &Cluster::new(4, 1, 4, 0).unwrap(),
                MESSAGE_BYTES.map(point).to_vec(),
            )
            .unwrap(),
        );
        assert_eq!(Network::from_json(&text.unwrap()).unwrap().cross, found);
    }

    #[test]
    fn all_ranks_measure_the_same() {
        let cluster = Cluster::new(4, 2, 4, 0).unwrap();
        let all: Vec<Vec<LinkPoint>> = std::thread::scope(|scope| {
            let begun: Vec<_> = ThreadCommunicator::create_group(4, Duration::from_mins(1))
                .into_iter()
                .map(|rank| scope.spawn(move || measure_links(&rank, &cluster, 2, &()).unwrap()))
                .collect();
            begun.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|points| *points == all[0]));
        assert_eq!(all[0].len(), 2 * MESSAGE_BYTES.len());
        let points = |cross| all[0].iter().filter(move |p| p.cross == cross);
        assert!(points(false).all(|p| p.messages == 1) && points(true).all(|p| p.messages == 2));
    }
}
