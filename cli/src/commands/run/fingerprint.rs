//! Comparison of the ranks of a job before they run: versions, models, options, traces and weights.
//!
//! In: the inputs of this rank. Out: its fingerprint, values by name. From the fingerprints of all ranks it
//! derives their hosts, or one error that names the difference and the ranks. The error is the same on all
//! ranks.

use super::processes::RankFault;
use super::{RunInputs, RunRequest};
use anyhow::anyhow;
use evenkeel_exec::ExecError;
use evenkeel_exec::batch_source::BatchSource;
use evenkeel_exec::transport::{TransportError, format_ranks};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Returns the values that have to be equal on all ranks, by name. The host is included but may differ.
pub(super) fn run_fingerprint(
    request: &RunRequest,
    inputs: &RunInputs,
    host: &str,
) -> Result<BTreeMap<String, String>, String> {
    let words = |error: ExecError| evenkeel::error_chain(&error);
    let mut values: BTreeMap<String, String> = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host", host.to_owned()),
        ("model", format!("{:?}", inputs.exec.model)),
        ("--ranks", inputs.exec.cluster.ranks().to_string()),
        ("--nodes", inputs.exec.cluster.nodes().to_string()),
        ("slots per rank", inputs.exec.cluster.slots_per_rank().to_string()),
        ("router", format!("{} {:?}", inputs.exec.router, inputs.exec.capacity)),
        ("--dtype", inputs.exec.dtype.to_string()),
        ("--seed", inputs.exec.seed.to_string()),
        ("--policy", format!("{} groups {}", request.policy_name(), request.cluster.groups)),
        ("--split and --tie-break", format!("{} {:?}", request.split, inputs.exec.tie_break)),
        ("--aggregate", request.aggregate.to_string()),
        ("--backend", request.backend.name().to_owned()),
        (
            "--cuda-aware",
            request.cuda_aware.map_or("auto".into(), |aware| format!("{aware:?}").to_lowercase()),
        ),
        ("--ffn", format!("{:?}", request.ffn)),
        ("--skew and --drift", format!("{} {}", request.skew, request.drift)),
        ("--replan-every with its options", format!("{:?}", request.replan)),
        ("--check", request.check.to_string()),
        ("--no-baseline", request.no_baseline.to_string()),
        ("--verify-plans", request.verify_plans.to_string()),
        ("--chunks", format!("{:?}", request.chunks)),
        ("--rank-timeout", request.rank_timeout.to_string()),
        ("layers that run", format!("{:?}", inputs.layers)),
        ("steps planned on and run", format!("{:?} {:?}", inputs.plan_on, inputs.steps)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    values.insert("trace".into(), trace_digest(inputs));
    values.insert("weights".into(), weights_digest(inputs).map_err(words)?);
    Ok(values)
}

/// Returns a digest of all replayed loads.
fn trace_digest(inputs: &RunInputs) -> String {
    let mut hash = Sha256::new();
    let steps = inputs.plan_on.start.min(inputs.steps.start)..inputs.steps.end;
    for step in steps {
        for &layer in &inputs.layers {
            if let Some(trace) = inputs.feed.trace() {
                trace.loads(step, layer).iter().for_each(|load| hash.update(load.to_le_bytes()));
            }
            if let (BatchSource::Tokens(tokens), true) = (&inputs.feed, inputs.steps.contains(&step)) {
                tokens.expert_ids(step, layer).iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
        }
    }
    let tokens = match &inputs.feed {
        BatchSource::Tokens(_) => "single tokens".to_owned(),
        BatchSource::Counts { top_k, seed, .. } => format!("counts of top-{top_k} dealt by seed {seed}"),
        BatchSource::Synthetic { tokens } => format!("none, {tokens} tokens a step"),
    };
    format!("{tokens}, digest {}", short_digest(hash))
}

/// Returns a digest of routers, norms and the first expert of every layer. These parts distinguish
/// checkpoints without a complete read.
fn weights_digest(inputs: &RunInputs) -> Result<String, ExecError> {
    let mut hash = Sha256::new();
    for layer in 0..inputs.layers.len() {
        let (gate, expert) =
            (inputs.weights.router_weights(layer)?, inputs.weights.expert_weights(layer, 0)?);
        let numbers = [
            gate.weight.to_f32(),
            gate.bias,
            inputs.weights.norm_weights(layer)?,
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

/// Refuses ranks that cannot run together. The error names the difference and is the same on all ranks.
/// Returns the hosts.
pub(super) fn compare_fingerprints(ranks: usize, gathered: &[Vec<u8>]) -> Result<Vec<String>, RankFault> {
    type Fingerprint = Result<BTreeMap<String, String>, String>;
    let mut all: Vec<BTreeMap<String, String>> = Vec::with_capacity(gathered.len());
    let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (rank, bytes) in gathered.iter().enumerate() {
        let fingerprint: Fingerprint = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Err("its fingerprint is not that of this version of evenkeel".into()));
        match fingerprint {
            Ok(values) => all.push(values),
            Err(why) => failed.entry(why).or_default().push(rank),
        }
    }
    refuse_failed(&failed, gathered.len())?;
    let mut differ = Vec::new();
    for (name, value) in all[0].iter().filter(|(name, _)| *name != "host") {
        let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].get(name) != Some(value)).collect();
        if let Some(&rank) = others.first() {
            let other = all[rank].get(name).map_or("nothing", String::as_str);
            differ.push(format!("{name} is {value} on rank 0 and {other} on {}", format_ranks(&others)));
        }
    }
    if !differ.is_empty() {
        return Err(RankFault::All(anyhow!("the ranks would not run the same: {}", differ.join("; "))));
    }
    let expected = all[0].get("--ranks").and_then(|ranks| ranks.parse().ok()).unwrap_or(0);
    if expected != ranks {
        return Err(TransportError::Ranks { given: ranks, expected }.into());
    }
    Ok(all.into_iter().map(|mut values| values.remove("host").unwrap_or_default()).collect())
}

/// Returns an error with the first reason for which ranks fail, if any fails.
pub(super) fn refuse_failed(failed: &BTreeMap<String, Vec<usize>>, ranks: usize) -> Result<(), RankFault> {
    match failed.iter().next() {
        None => Ok(()),
        Some((why, all)) if all.len() == ranks => Err(RankFault::All(anyhow!("{why}"))),
        Some((why, some)) => Err(RankFault::All(anyhow!("{}: {why}", format_ranks(some)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the fingerprint of a rank, with another value under one name.
    fn encoded(other: Option<(&str, &str)>) -> Vec<u8> {
        let mut values: BTreeMap<&str, &str> =
            [("version", "0.1.0"), ("host", "a"), ("model", "m"), ("trace", "digest 1"), ("--ranks", "3")]
                .into();
        values.extend(other);
        serde_json::to_vec(&Ok::<_, String>(values)).unwrap_or_default()
    }

    /// Returns the result that all ranks obtain: the hosts, or the common error.
    fn compared(ranks: usize, gathered: &[Vec<u8>]) -> Result<Vec<String>, String> {
        compare_fingerprints(ranks, gathered).map_err(|fault| match fault {
            RankFault::All(error) => evenkeel::error_chain(error.as_ref()),
            RankFault::Own(error) => format!("one rank's own: {error}"),
        })
    }

    #[test]
    fn equal_ranks_may_be_on_any_host() {
        let all = [encoded(None), encoded(Some(("host", "b"))), encoded(None)];
        assert_eq!(compared(3, &all), Ok(vec!["a".to_owned(), "b".to_owned(), "a".to_owned()]));
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
        let short =
            serde_json::to_vec(&Ok::<_, String>(BTreeMap::from([("version", "0.1.0")]))).unwrap_or_default();
        let error = compared(3, &[encoded(None), encoded(None), short]).unwrap_err();
        assert!(error.contains("model is m on rank 0 and nothing on rank 2"), "{error}");
    }

    #[test]
    fn a_rank_that_failed_is_named_with_its_reason() {
        let failed = |why: &str| serde_json::to_vec(&Err::<(), _>(why)).unwrap_or_default();
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
