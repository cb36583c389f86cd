//! `evenkeel simulate backtest`: the decisions of the service on a trace.

use super::compare_document;
use super::program::Sandbox;

#[test]
fn decisions() {
    let sandbox = Sandbox::new();
    let (prefill, decode) = ("traces/sample-prefill.csv.zst", "traces/sample-decode.csv.zst");
    for (name, args) in [
        (
            "every-batch",
            format!(
                "{prefill} --layers 1,7 --ranks 8 --redundant 8 --decide 'policy = \"eplb\", first_after = 8, every = 8, \
                 max_moves = 6, move_cost = 0.05'"
            ),
        ),
        (
            "recourse",
            format!(
                "{prefill} --layers 1 --ranks 8 --redundant 8 --skip-every-batch --decide 'first_after = 8, every = 8, \
                 move_cost = 0.02, horizon = 400'"
            ),
        ),
        (
            "decode",
            format!(
                "{decode} --layers 0-1 --ranks 8 --redundant 8 --skip-every-batch --decide 'first_after = 16, every = 128, \
                 window = 64, judged = 16, min_gain = 0.0, horizon = 5000, copy_share = 1.0' --model gpt-oss-20b,h100 \
                 --link-gbps 400"
            ),
        ),
        (
            "nodes",
            format!(
                "{decode} --layers 3 --ranks 8 --nodes 2 --redundant 8 --skip-every-batch --decide 'window = 48, every = 200, \
                 min_every = 50'"
            ),
        ),
    ] {
        compare_document(&format!("bench-online-{name}"), &sandbox, &format!("simulate backtest {args}"));
    }
}
