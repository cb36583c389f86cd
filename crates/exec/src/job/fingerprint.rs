//! Comparison of the ranks of a job before they run: versions, models, options, traces and weights.
//!
//! Input: the inputs of this rank. Output: its fingerprint, values by name. From the fingerprints of all
//! ranks follow their hosts, or one error that names the difference and the ranks. The error is the same on
//! all ranks.

use super::agreement::refuse_failed;
use crate::batch_source::BatchSource;
use crate::comm::{CommError, format_ranks};
use crate::error::ExecError;
use crate::run::ExecRun;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;

/// Name of the number of ranks among the values.
const RANKS: &str = "--ranks";
/// Name of the host among the values. It may differ.
const HOST: &str = "host";

/// The values that have to be equal on all ranks, by name.
pub type Fingerprint = BTreeMap<String, String>;

/// Returns the fingerprint of a run that is planned on the steps `plan_on`. `options` are the options of the
/// program, by name.
///
/// # Errors
/// Fails if weights cannot be read.
pub fn run_fingerprint<'a>(
    run: &ExecRun<'_>,
    plan_on: &Range<usize>,
    options: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<Fingerprint, ExecError> {
    let cluster = &run.exec.cluster;
    let values = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", format!("{:?}", run.exec.model)),
        (RANKS, cluster.ranks().to_string()),
        ("--nodes", cluster.nodes().to_string()),
        ("slots per rank", cluster.slots_per_rank().to_string()),
        ("router", format!("{} {:?}", run.exec.router, run.exec.capacity)),
        ("layers that run", format!("{:?}", run.layers)),
        ("steps planned on and run", format!("{plan_on:?} {:?}", run.steps)),
        ("trace", trace_digest(run, plan_on)),
        ("weights", weights_digest(run)?),
    ];
    Ok(values.into_iter().chain(options).map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Returns a digest of all replayed loads.
fn trace_digest(run: &ExecRun<'_>, plan_on: &Range<usize>) -> String {
    let mut hash = Sha256::new();
    for step in plan_on.start.min(run.steps.start)..run.steps.end {
        for &layer in &run.layers {
            if let Some(trace) = run.feed.trace() {
                trace.loads(step, layer).iter().for_each(|load| hash.update(load.to_le_bytes()));
            }
            if let (BatchSource::Tokens(tokens), true) = (run.feed, run.steps.contains(&step)) {
                tokens.expert_ids(step, layer).iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
        }
    }
    let tokens = match run.feed {
        BatchSource::Tokens(_) => "single tokens".to_owned(),
        BatchSource::Counts { top_k, seed, .. } => format!("counts of top-{top_k} dealt by seed {seed}"),
        BatchSource::Synthetic { tokens } => format!("none, {tokens} tokens a step"),
    };
    format!("{tokens}, digest {}", short_digest(hash))
}

/// Returns a digest of routers, norms and the first expert of every layer. These parts distinguish
/// checkpoints without a complete read.
fn weights_digest(run: &ExecRun<'_>) -> Result<String, ExecError> {
    let mut hash = Sha256::new();
    for layer in 0..run.layers.len() {
        let (gate, expert) = (run.weights.router_weights(layer)?, run.weights.expert_weights(layer, 0)?);
        let numbers = [
            gate.weight.to_f32(),
            gate.bias,
            run.weights.norm_weights(layer)?,
            expert.up.to_f32(),
            expert.down.to_f32(),
        ];
        numbers.iter().flatten().for_each(|number| hash.update(number.to_le_bytes()));
        gate.selection.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    Ok(format!("digest {}", short_digest(hash)))
}

fn short_digest(hash: Sha256) -> String {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// Encodes the fingerprint of a rank on a host, or the reason for which it has none.
pub(super) fn encode_fingerprint(
    fingerprint: Result<Fingerprint, String>,
    host: &str,
) -> Result<Vec<u8>, CommError> {
    let with_host = fingerprint.map(|mut values| {
        values.insert(HOST.to_owned(), host.to_owned());
        values
    });
    serde_json::to_vec(&with_host)
        .map_err(|error| CommError::Library { call: "encoding a fingerprint", reason: error.to_string() })
}

/// Refuses ranks that cannot run together. The error names the difference and is the same on all ranks.
/// Returns the hosts.
pub(super) fn compare_fingerprints(ranks: usize, gathered: &[Vec<u8>]) -> Result<Vec<String>, CommError> {
    let mut all: Vec<Fingerprint> = Vec::with_capacity(gathered.len());
    let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (rank, bytes) in gathered.iter().enumerate() {
        let fingerprint: Result<Fingerprint, String> = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Err("its fingerprint is not that of this version of evenkeel".into()));
        match fingerprint {
            Ok(values) => all.push(values),
            Err(why) => failed.entry(why).or_default().push(rank),
        }
    }
    refuse_failed(&failed, gathered.len())?;
    let mut differ = Vec::new();
    for (name, value) in all.first().into_iter().flatten().filter(|(name, _)| *name != HOST) {
        let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].get(name) != Some(value)).collect();
        if let Some(&rank) = others.first() {
            let other = all[rank].get(name).map_or("nothing", String::as_str);
            differ.push(format!("{name} is {value} on rank 0 and {other} on {}", format_ranks(&others)));
        }
    }
    if !differ.is_empty() {
        let why = format!("the ranks would not run the same: {}", differ.join("; "));
        return Err(CommError::Refused(why));
    }
    let stated = all.first().and_then(|values| values.get(RANKS));
    let expected = stated.and_then(|ranks| ranks.parse().ok()).unwrap_or(0);
    if expected != ranks {
        return Err(CommError::Ranks { given: ranks, expected });
    }
    Ok(all.into_iter().map(|mut values| values.remove(HOST).unwrap_or_default()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Returns the fingerprint of a rank, with another value under one name.
    fn encoded(other: Option<(&str, &str)>) -> Vec<u8> {
        let mut values: BTreeMap<&str, &str> =
            [("version", "0.1.0"), ("host", "a"), ("model", "m"), ("trace", "digest 1"), ("--ranks", "3")]
                .into();
        values.extend(other);
        serde_json::to_vec(&Ok::<_, String>(values)).unwrap()
    }

    /// Returns the result that all ranks obtain: the hosts, or the common error.
    fn compared(ranks: usize, gathered: &[Vec<u8>]) -> Result<Vec<String>, String> {
        compare_fingerprints(ranks, gathered).map_err(|error| {
            assert!(error.is_common());
            error.to_string()
        })
    }

    #[test]
    fn equal_ranks_may_be_on_any_host() {
        let all = [encoded(None), encoded(Some(("host", "b"))), encoded(None)];
        assert_eq!(compared(3, &all), Ok(vec!["a".to_owned(), "b".to_owned(), "a".to_owned()]));
        let values = Fingerprint::from([("--ranks".to_owned(), "1".to_owned())]);
        let own = encode_fingerprint(Ok(values), "c").unwrap();
        assert_eq!(compared(1, &[own]), Ok(vec!["c".to_owned()]));
    }

    #[test]
    fn a_difference_is_named_with_the_ranks() {
        for (name, other, expected) in [
            ("version", "0.2.0", "version is 0.1.0 on rank 0 and 0.2.0 on rank 1"),
            ("trace", "digest 2", "trace is digest 1 on rank 0 and digest 2 on rank 1"),
            ("model", "n", "model is m on rank 0 and n on rank 1"),
        ] {
            let error =
                compared(3, &[encoded(None), encoded(Some((name, other))), encoded(None)]).unwrap_err();
            assert!(error.starts_with("the ranks would not run the same: "), "{error}");
            assert!(error.ends_with(expected), "{error}");
        }
        // A rank of another version has other options.
        let short = serde_json::to_vec(&Ok::<_, String>(BTreeMap::from([("version", "0.1.0")]))).unwrap();
        let error = compared(3, &[encoded(None), encoded(None), short]).unwrap_err();
        assert!(error.contains("model is m on rank 0 and nothing on rank 2"), "{error}");
    }

    #[test]
    fn a_rank_that_failed_is_named_with_its_reason() {
        let failed = |why: &str| encode_fingerprint(Err(why.to_owned()), "a").unwrap();
        let some = [failed("no trace"), encoded(None), failed("no trace")];
        assert_eq!(compared(3, &some), Err("ranks 0 and 2: no trace".to_owned()));
        // If all ranks fail for the same reason, the message names none.
        assert_eq!(compared(2, &[failed("no trace"), failed("no trace")]), Err("no trace".to_owned()));
    }

    #[test]
    fn a_fingerprint_of_another_version_is_refused() {
        for garbage in [&b""[..], b"\xff\x00", b"{}", b"[1]", b"{\"Ok\":{\"version\":1}}"] {
            let error = compared(3, &[encoded(None), garbage.to_vec(), encoded(None)]).unwrap_err();
            assert_eq!(error, "rank 1: its fingerprint is not that of this version of evenkeel");
        }
    }

    #[test]
    fn another_number_of_processes_than_ranks_is_refused() {
        let error = compared(2, &[encoded(None), encoded(None)]).unwrap_err();
        assert!(error.starts_with("2 processes were started for 3 ranks"), "{error}");
    }
}
