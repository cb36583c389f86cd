//! What exchanges between ranks really cost here: measured, and fitted by the links that `simulate --network` takes.
//!
//! In: a transport. Out: [`LinkPoint`]s (time of an exchange of so many bytes) and a [`Network`]. Every exchange is a message to every
//! other rank; what it costs without bytes is laid on the messages, so that it grows with the ranks. Links inside nodes and between
//! them are measured apart; where there is one node, the second is taken to be as the first.

use super::error::ExecError;
use super::run::Progress;
use super::transport::{At, Purpose, Transport};
use crate::cluster::{Cluster, Link, NETWORK_FORMAT, Network};
use crate::simulate::Summary;
use serde::Serialize;
use std::time::Instant;

/// Bytes that a rank sends to each other rank of the link.
const SIZES: [usize; 8] = [0, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22];

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LinkPoint {
    /// Whether it was between nodes.
    pub cross: bool,
    /// Messages of a rank on this link.
    pub messages: u64,
    /// Bytes that it sends, and as many that it receives.
    pub bytes: u64,
    /// Microseconds from the call of the exchange to its end: the median of the rounds, the mean of the ranks.
    pub us: f64,
}

/// Measures exchanges. Every rank has to call it, and all get the same.
///
/// # Errors
/// When another rank is gone, or there is one rank alone.
pub fn measure(
    transport: &dyn Transport,
    cluster: &Cluster,
    rounds: usize,
    progress: &dyn Progress,
) -> Result<Vec<LinkPoint>, ExecError> {
    let (me, ranks) = (transport.rank(), transport.ranks());
    if ranks < 2 || rounds == 0 || ranks != cluster.ranks() {
        return Err(ExecError::Nothing(
            "nothing to measure: expected at least two ranks, as many as the cluster has, and a round".into(),
        ));
    }
    let at = At { step: None, layer: None, purpose: Purpose::Control };
    let linked = |cross: bool, to: usize| to != me && (cluster.node_of(to) != cluster.node_of(me)) == cross;
    let links: Vec<bool> =
        [false, true].into_iter().filter(|&cross| (0..ranks).any(|to| linked(cross, to))).collect();
    let mut points = Vec::new();
    for (at_link, &cross) in links.iter().enumerate() {
        let messages = (0..ranks).filter(|&to| linked(cross, to)).count();
        for (at_size, size) in SIZES.into_iter().enumerate() {
            let mut times = Vec::with_capacity(rounds);
            for round in 0..=rounds {
                let parcels = (0..ranks)
                    .map(|to| if linked(cross, to) { vec![1u8; size] } else { Vec::new() })
                    .collect();
                // All begin together.
                transport.exchange(at, vec![Vec::new(); ranks])?;
                let begun = Instant::now();
                transport.exchange(at, parcels)?;
                // The first touches memory and connections, and does not count.
                if round > 0 {
                    times.push(begun.elapsed().as_secs_f64() * 1e6);
                }
            }
            let own = Summary::of(times).p50;
            let told = transport.exchange(at, vec![own.to_le_bytes().to_vec(); ranks])?;
            let told = told.iter().map(|bytes| bytes.as_slice().try_into().map(f64::from_le_bytes));
            let all: Vec<f64> = told
                .collect::<Result<_, _>>()
                .map_err(|_| ExecError::Nothing("a rank told no time: are all of one version?".into()))?;
            let bytes = (messages * size) as u64;
            points.push(LinkPoint { cross, messages: messages as u64, bytes, us: Summary::of(all).mean });
            progress.steps(at_link * SIZES.len() + at_size + 1, links.len() * SIZES.len());
        }
    }
    Ok(points)
}

/// The link with the least sum of squared logarithms of measured over fitted, and how far its worst point is from 1.
///
/// With a message taken to be worth so many bytes the best rate is a geometric mean; worths are tried from a byte to a gigabyte,
/// ever finer round the best.
///
/// # Errors
/// When there are fewer than two sizes.
pub fn fit(points: &[LinkPoint]) -> Result<(Link, f64), ExecError> {
    let sound = |p: &LinkPoint| p.us > 0.0 && p.us.is_finite() && p.messages > 0;
    let mut sizes: Vec<u64> = points.iter().map(|p| p.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.len() < 2 || !points.iter().all(sound) {
        return Err(ExecError::Nothing(
            "nothing to fit: expected times of exchanges of several sizes".into(),
        ));
    }
    // Microseconds per byte, and how far it is off.
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
    let link = Link { alpha_us: 0.0, message_us: best.exp() * slope, gb_s: 1e-3 / slope, node_gb_s: None };
    let off = points.iter().map(|p| (p.us / link.us(p.messages as f64, p.bytes as f64) - 1.0).abs());
    Ok((link, off.fold(0.0, f64::max)))
}

/// A network as it is written, with what it was fitted to; [`Network::from_json`] reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkFile {
    format: &'static str,
    /// What it says.
    #[serde(flatten)]
    pub network: Network,
    /// Ranks that measured.
    pub ranks: usize,
    /// In so many nodes.
    pub nodes: usize,
    /// Largest relative error of the fit, inside nodes and between them.
    pub off: [f64; 2],
    /// What was measured.
    pub points: Vec<LinkPoint>,
}

impl LinkFile {
    /// The fit of what was measured.
    ///
    /// # Errors
    /// As [`fit`].
    pub fn of(name: String, cluster: &Cluster, points: Vec<LinkPoint>) -> Result<Self, ExecError> {
        let of =
            |cross: bool| -> Vec<LinkPoint> { points.iter().filter(|p| p.cross == cross).copied().collect() };
        let (node, cross) = match (of(false), of(true)) {
            (node, cross) if node.is_empty() => (fit(&cross)?, fit(&cross)?),
            (node, cross) if cross.is_empty() => (fit(&node)?, fit(&node)?),
            (node, cross) => (fit(&node)?, fit(&cross)?),
        };
        Ok(Self {
            format: NETWORK_FORMAT,
            network: Network { name, node: node.0, cross: cross.0 },
            ranks: cluster.ranks(),
            nodes: cluster.nodes(),
            off: [node.1, cross.1],
            points,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::transport::Threads;
    use std::time::Duration;

    #[test]
    fn a_link_is_found_again() {
        let link = Link { alpha_us: 0.0, message_us: 4.0, gb_s: 2.5, node_gb_s: None };
        let point = |size: usize| {
            let bytes = 3 * size as u64;
            LinkPoint { cross: false, messages: 3, bytes, us: link.us(3.0, bytes as f64) }
        };
        let (found, off) = fit(&SIZES.map(point)).unwrap();
        assert!((found.message_us - 4.0).abs() < 1e-6 && (found.gb_s - 2.5).abs() < 1e-6 && off < 1e-6);
        assert!(fit(&[point(0)]).is_err());
        let text = serde_json::to_string(
            &LinkFile::of("here".into(), &Cluster::new(4, 1, 4, 0).unwrap(), SIZES.map(point).to_vec())
                .unwrap(),
        );
        assert_eq!(Network::from_json(&text.unwrap()).unwrap().cross, found);
    }

    #[test]
    fn all_ranks_measure_the_same() {
        let cluster = Cluster::new(4, 2, 4, 0).unwrap();
        let all: Vec<Vec<LinkPoint>> = std::thread::scope(|scope| {
            let begun: Vec<_> = Threads::group(4, Duration::from_mins(1))
                .into_iter()
                .map(|rank| scope.spawn(move || measure(&rank, &cluster, 2, &()).unwrap()))
                .collect();
            begun.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|points| *points == all[0]));
        assert_eq!(all[0].len(), 2 * SIZES.len());
        let points = |cross| all[0].iter().filter(move |p| p.cross == cross);
        assert!(points(false).all(|p| p.messages == 1) && points(true).all(|p| p.messages == 2));
    }
}
