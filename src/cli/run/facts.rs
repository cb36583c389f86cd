//! What the ranks of a job compare before they run: versions, models, options, traces and weights.
//!
//! In: what this rank is about to run. Out: its facts by name; of those of all ranks, their hosts, or one error that names what differs
//! where, the same on all of them.

use super::processes::Fault;
use super::{RunArgs, Setup};
use anyhow::anyhow;
use evenkeel::exec::ExecError;
use evenkeel::exec::feed::Feed;
use evenkeel::exec::transport::{TransportError, ranks_in_words};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What has to be the same on all ranks, by name; and the host, which has not.
pub(super) fn facts(args: &RunArgs, setup: &Setup, host: &str) -> Result<BTreeMap<String, String>, String> {
    let words = |error: ExecError| evenkeel::in_words(&error);
    let mut facts: BTreeMap<String, String> = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host", host.to_owned()),
        ("model", format!("{:?}", setup.exec.model)),
        ("--ranks", setup.exec.cluster.ranks().to_string()),
        ("--nodes", setup.exec.cluster.nodes().to_string()),
        ("slots per rank", setup.exec.cluster.slots_per_rank().to_string()),
        ("router", format!("{} {:?}", setup.exec.router, setup.exec.capacity)),
        ("--dtype", setup.exec.dtype.to_string()),
        ("--seed", setup.exec.seed.to_string()),
        ("--policy", format!("{} groups {}", args.policy_name(), args.cluster.groups)),
        ("--split and --then", format!("{} {:?}", args.split, setup.exec.then)),
        ("--aggregate", args.aggregate.to_string()),
        ("--backend", args.backend.name().to_owned()),
        ("--cuda-aware", args.cuda_aware.map_or("auto".into(), |aware| format!("{aware:?}").to_lowercase())),
        ("--ffn", format!("{:?}", args.ffn)),
        ("--skew and --drift", format!("{} {}", args.skew, args.drift)),
        ("--replan-every, --move-budget and --max-moves", format!("{:?}", args.replan())),
        ("--check", args.check.to_string()),
        ("--alone", args.alone.to_string()),
        ("--prove-plans", args.prove_plans.to_string()),
        ("--chunks", format!("{:?}", args.chunks)),
        ("--rank-timeout", args.rank_timeout.to_string()),
        ("layers that run", format!("{:?}", setup.layers)),
        ("steps planned on and run", format!("{:?} {:?}", setup.plan_on, setup.steps)),
    ]
    .into_iter()
    .map(|(name, fact)| (name.to_owned(), fact))
    .collect();
    facts.insert("trace".into(), trace(setup));
    facts.insert("weights".into(), weights(setup).map_err(words)?);
    Ok(facts)
}

/// A digest of everything that is replayed.
fn trace(setup: &Setup) -> String {
    let mut hash = Sha256::new();
    let steps = setup.plan_on.start.min(setup.steps.start)..setup.steps.end;
    for step in steps {
        for &layer in &setup.layers {
            if let Some(trace) = setup.feed.trace() {
                trace.loads(step, layer).iter().for_each(|load| hash.update(load.to_le_bytes()));
            }
            if let (Feed::Tokens(tokens), true) = (&setup.feed, setup.steps.contains(&step)) {
                tokens.ids(step, layer).iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
        }
    }
    let tokens = match &setup.feed {
        Feed::Tokens(_) => "single tokens".to_owned(),
        Feed::Counts { top_k, seed, .. } => format!("counts of top-{top_k} dealt by seed {seed}"),
        Feed::Made { tokens } => format!("none, {tokens} tokens a step"),
    };
    format!("{tokens}, digest {}", short(hash))
}

/// A digest of routers, norms and the first expert of every layer: what tells checkpoints apart without reading all of them.
fn weights(setup: &Setup) -> Result<String, ExecError> {
    let mut hash = Sha256::new();
    for layer in 0..setup.layers.len() {
        let (gate, expert) = (setup.weights.gate(layer)?, setup.weights.expert(layer, 0)?);
        let numbers =
            [gate.weight.wide(), gate.bias, setup.weights.norm(layer)?, expert.up.wide(), expert.down.wide()];
        numbers.iter().flatten().for_each(|number| hash.update(number.to_le_bytes()));
        gate.selection.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    Ok(format!("digest {}", short(hash)))
}

fn short(hash: Sha256) -> String {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// Refuses ranks that cannot run together, naming what differs where; the same error on all of them. Out: the hosts.
pub(super) fn compare(ranks: usize, told: &[Vec<u8>]) -> Result<Vec<String>, Fault> {
    type Facts = Result<BTreeMap<String, String>, String>;
    let mut all: Vec<BTreeMap<String, String>> = Vec::with_capacity(told.len());
    let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (rank, bytes) in told.iter().enumerate() {
        let facts: Facts = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Err("it speaks of its run as no evenkeel of this version does".into()));
        match facts {
            Ok(facts) => all.push(facts),
            Err(why) => failed.entry(why).or_default().push(rank),
        }
    }
    refuse(&failed, told.len())?;
    let mut differ = Vec::new();
    for (name, fact) in all[0].iter().filter(|(name, _)| *name != "host") {
        let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].get(name) != Some(fact)).collect();
        if let Some(&rank) = others.first() {
            let other = all[rank].get(name).map_or("nothing", String::as_str);
            differ.push(format!("{name} is {fact} on rank 0 and {other} on {}", ranks_in_words(&others)));
        }
    }
    if !differ.is_empty() {
        return Err(Fault::All(anyhow!("the ranks are not about to run the same: {}", differ.join("; "))));
    }
    let expected = all[0].get("--ranks").and_then(|ranks| ranks.parse().ok()).unwrap_or(0);
    if expected != ranks {
        return Err(TransportError::Ranks { given: ranks, expected }.into());
    }
    Ok(all.into_iter().map(|mut facts| facts.remove("host").unwrap_or_default()).collect())
}

/// The first reason for which ranks fail, where any does.
pub(super) fn refuse(failed: &BTreeMap<String, Vec<usize>>, ranks: usize) -> Result<(), Fault> {
    match failed.iter().next() {
        None => Ok(()),
        Some((why, all)) if all.len() == ranks => Err(Fault::All(anyhow!("{why}"))),
        Some((why, some)) => Err(Fault::All(anyhow!("{}: {why}", ranks_in_words(some)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rank says, with something else under one name.
    fn told(other: Option<(&str, &str)>) -> Vec<u8> {
        let mut facts: BTreeMap<&str, &str> =
            [("version", "0.1.0"), ("host", "a"), ("model", "m"), ("trace", "digest 1"), ("--ranks", "3")]
                .into();
        facts.extend(other);
        serde_json::to_vec(&Ok::<_, String>(facts)).unwrap_or_default()
    }

    /// What all ranks find; the hosts, or the error that all of them have.
    fn found(ranks: usize, told: &[Vec<u8>]) -> Result<Vec<String>, String> {
        compare(ranks, told).map_err(|fault| match fault {
            Fault::All(error) => evenkeel::in_words(error.as_ref()),
            Fault::Own(error) => format!("one rank's own: {error}"),
        })
    }

    #[test]
    fn ranks_that_are_about_to_run_the_same_may_be_on_any_host() {
        let all = [told(None), told(Some(("host", "b"))), told(None)];
        assert_eq!(found(3, &all), Ok(vec!["a".to_owned(), "b".to_owned(), "a".to_owned()]));
    }

    #[test]
    fn what_differs_is_named_with_the_ranks() {
        for (name, other, expected) in [
            ("version", "0.2.0", "version is 0.1.0 on rank 0 and 0.2.0 on rank 1"),
            ("trace", "digest 2", "trace is digest 1 on rank 0 and digest 2 on rank 1"),
            ("model", "n", "model is m on rank 0 and n on rank 1"),
        ] {
            let error = found(3, &[told(None), told(Some((name, other))), told(None)]).unwrap_err();
            assert!(error.starts_with("the ranks are not about to run the same: "), "{error}");
            assert!(error.ends_with(expected), "{error}");
        }
        // Other options than this version's.
        let short =
            serde_json::to_vec(&Ok::<_, String>(BTreeMap::from([("version", "0.1.0")]))).unwrap_or_default();
        let error = found(3, &[told(None), told(None), short]).unwrap_err();
        assert!(error.contains("model is m on rank 0 and nothing on rank 2"), "{error}");
    }

    #[test]
    fn a_rank_that_failed_is_named_with_its_reason() {
        let failed = |why: &str| serde_json::to_vec(&Err::<(), _>(why)).unwrap_or_default();
        let some = [failed("no trace"), told(None), failed("no trace")];
        assert_eq!(found(3, &some), Err("ranks 0 and 2: no trace".to_owned()));
        // All of them for the same reason: it is nobody's in particular.
        assert_eq!(found(2, &[failed("no trace"), failed("no trace")]), Err("no trace".to_owned()));
    }

    #[test]
    fn what_no_evenkeel_of_this_version_says_is_refused() {
        for garbage in [&b""[..], b"\xff\x00", b"{}", b"[1]", b"{\"Ok\":{\"version\":1}}"] {
            let error = found(3, &[told(None), garbage.to_vec(), told(None)]).unwrap_err();
            assert_eq!(error, "rank 1: it speaks of its run as no evenkeel of this version does");
        }
    }

    #[test]
    fn another_number_of_processes_than_ranks_is_refused() {
        let error = found(2, &[told(None), told(None)]).unwrap_err();
        assert!(error.starts_with("2 processes were started for 3 ranks"), "{error}");
    }
}
