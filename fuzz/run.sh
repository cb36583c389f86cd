#!/bin/sh
# Runs every fuzz target, one after the other: fuzz/run.sh [SECONDS each] [LOG FOLDER].
# Needs a nightly toolchain and cargo-fuzz; seeds are written by tests/trace_seeds.rs.
# The last lines of each log say how many inputs were run.
set -eu
cd "$(dirname "$0")"
seconds=${1:-600}
logs=${2:-target/logs}
mkdir -p "$logs"
(cd .. && EVENKEEL_FUZZ_CORPUS="$PWD/fuzz/corpus" cargo test -q --test trace_seeds >/dev/null)
cargo +nightly fuzz build
for target in pickle zip npy safetensors json jsonl csv parquet checkpoint forward loads; do
    status=0
    nice -n 19 cargo +nightly fuzz run "$target" -- \
        -max_total_time="$seconds" -max_len=8192 -rss_limit_mb=4096 -timeout=30 -print_final_stats=1 \
        >"$logs/$target.log" 2>&1 || status=$?
    echo "$target: exit $status, $(grep -c . "$logs/$target.log") lines, \
$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target.log") inputs" | tee -a "$logs/summary.log"
done
