//! Re-planning within a link budget, as users run it.

#![allow(clippy::unwrap_used)]

use crate::command::{document, evenkeel, refusal, stdout, trace_file};
use serde_json::Value;
use std::fs;

fn plan(trace: &str, out: &str, more: &[&str]) -> Value {
    document(&[&["plan", trace, "-o", out, "--json"], more].concat())
}

/// Returns the slots of every layer of a plan file.
fn slots(path: &str) -> Vec<Value> {
    let plan: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    plan["layers"].as_array().unwrap().iter().map(|layer| layer["slots"].clone()).collect()
}

/// Re-plans from `previous` with `mib` MiB for each receiver. An expert has 42 MiB.
fn linked(trace: &str, previous: &str, out: &str, mib: &str, more: &[&str]) -> Value {
    let base = ["plan", "replan", previous, trace, "-o", out, "--json", "--link-budget", mib];
    document(&[&base[..], &["--model", "deepseek-v3"], more].concat())
}

#[test]
fn a_link_budget_limits_the_busiest_receiver() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let old = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let new = trace_file(folder.path(), "new.csv", 10, |step| 4 + step / 5);
    let (first, next) = (at("first.json"), at("next.json"));
    for policy in ["eplb", "recourse:iterations=2000"] {
        let policy = ["--policy", policy];
        plan(&old, &first, &[&["--ranks", "4"], &policy[..]].concat());
        let mut least = u64::MAX;
        // An expert of DeepSeek-V3 has 42 MiB, so nothing moves below that.
        for mib in ["0", "41", "42", "84", "100", "168", "1000000"] {
            let d = linked(&new, &first, &next, mib, &policy);
            let (links, room) = (&d["link_budget"], mib.parse::<f64>().unwrap());
            let busiest = links["busiest_mib"].as_f64().unwrap();
            assert!(busiest <= room && links["budget_mib"] == room && links["expert_mib"] == 42.0, "{d}");
            // The reported bytes are those of the listed moves.
            let mut received = [0.0; 4];
            for m in
                d["moves"]["layers"].as_array().unwrap().iter().flat_map(|l| l["moves"].as_array().unwrap())
            {
                received[m["to"].as_u64().unwrap() as usize] += 42.0;
            }
            assert_eq!(links["received_mib"], serde_json::json!(received));
            assert!(received.iter().all(|&mib| mib <= busiest));
            let rank = links["busiest_rank"].as_u64().unwrap() as usize;
            assert_eq!(links["received_mib"][rank], links["busiest_mib"]);
            if room < 42.0 {
                assert_eq!((d["moves"]["total"].as_u64(), slots(&next)), (Some(0), slots(&first)));
            }
            let sum = links["sum_of_peaks"]["after"].as_u64().unwrap();
            assert!(sum <= least && links["sum_of_peaks"]["before"].as_u64().unwrap() >= sum, "{mib}: {d}");
            least = sum;
        }
        let words = ["plan", "replan", &first, &new, "--link-budget", "84", "--model", "deepseek-v3"];
        let text = stdout(&[&words[..], &policy].concat());
        assert!(text.contains("of 84.0 MiB used by the busiest receiver (rank "), "{text}");
    }
    // A limit of moves in each layer applies in addition.
    let d = linked(&new, &first, &next, "100000", &["--max-moves", "1"]);
    assert!(
        d["moves"]["layers"].as_array().unwrap().iter().all(|l| l["moves"].as_array().unwrap().len() <= 1)
    );
}

#[test]
fn what_a_link_budget_needs_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 4, |_| 0);
    let first = at("first.json");
    plan(&trace, &first, &["--ranks", "4", "--policy", "eplb"]);
    let usage = |more: &[&str]| {
        let output = evenkeel(&[&["plan", "replan", &first, &trace], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let budget = ["--link-budget", "9"];
    assert!(usage(&budget).contains("--model"));
    // The model alone determines the memory of redundancy.
    stdout(&["plan", "replan", &first, &trace, "--model", "deepseek-v3"]);
    for (more, named) in [
        (&["--model", "gpt-9"][..], "unknown model"),
        (&["--model", "deepseek-v3", "--horizon-steps", "9"], "--link-gbps"),
    ] {
        let said = usage(&[&budget[..], more].concat());
        assert!(said.contains(named), "{said}");
    }
    let past = ["plan", "replan", &first, &trace, "--model", "deepseek-v3"];
    let wrong = refusal(&[&past[..], &["--horizon-steps", "9", "--link-gbps", "400"]].concat());
    assert!(wrong.contains("--horizon-steps needs the GPU too, as in deepseek-v3:fp8,h100"), "{wrong}");
    let wrong = refusal(&[&past[..], &["--link-budget", "18446744073709551615"]].concat());
    assert!(wrong.contains("too many bytes"), "{wrong}");
    let wrong = refusal(&[&past[..], &["--link-budget", "84", "--memory-budget", "8"]].concat());
    assert!(wrong.contains("a memory budget and a link budget: expected one of them"), "{wrong}");
    // A layer that the plan lacks.
    let text = fs::read_to_string(&trace).unwrap() + "0,6,2,9\n";
    let wider = at("wider.csv");
    fs::write(&wider, text).unwrap();
    let wrong = refusal(&["plan", "replan", &first, &wider, "--link-budget", "84", "--model", "deepseek-v3"]);
    assert!(wrong.contains("layer 6") && wrong.contains("the previous plan lacks this layer"), "{wrong}");
}
