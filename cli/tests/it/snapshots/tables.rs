//! Tables for people, on stdout, and the notes on stderr.

use super::compare;
use super::program::Sandbox;
use super::redact::without_times;

#[test]
fn tables() {
    let sandbox = Sandbox::new();
    let trace = "traces/sample-prefill.csv.zst";
    for (name, args) in [
        ("plan", format!("plan {trace} --layers 1-4 --ranks 8 --redundant 8 --for vllm -v")),
        ("plan-check", format!("plan check [folder]/plan.json --trace {trace}")),
        (
            "simulate",
            format!(
                "simulate {trace} --layers 1-4 --ranks 8 --redundant 8 --policies contiguous,eplb,lplb:ring,recourse"
            ),
        ),
        ("trace-inspect", format!("trace inspect {trace}")),
        ("trace-inspect-layers", "trace inspect traces/sample-decode.csv.zst --per-layer".to_owned()),
        ("topology", "plan topology ring:8 cube torus:2x4 -v".to_owned()),
    ] {
        if name == "plan-check" {
            sandbox.run(&format!(
                "plan {trace} --layers 1-4 --ranks 8 --redundant 8 --policy eplb -o [folder]/plan.json"
            ));
        }
        let [stdout, stderr] = sandbox.run(&args);
        // The version changes with every release.
        let stdout =
            stdout.replace(concat!("(evenkeel ", env!("CARGO_PKG_VERSION"), ")"), "(evenkeel [version])");
        compare(&format!("table-{name}"), &format!("{}-- stderr --\n{stderr}", without_times(&stdout)));
    }
}
