#!/bin/sh
# Runs every fuzz target, two at a time: fuzz/run.sh [SECONDS each] [LOG FOLDER].
#
# It needs a nightly toolchain and cargo-fuzz. cli/tests/it/trace_seeds.rs writes the seeds. The last lines of
# each log state the number of inputs. It exits with 1 if a target found a defect.
set -eu
cd "$(dirname "$0")"
seconds=${1:-600}
logs=${2:-target/logs}
mkdir -p "$logs"
(cd .. && EVENKEEL_FUZZ_CORPUS="$PWD/fuzz/corpus" cargo test -q -p evenkeel-cli --test it trace_seeds:: >/dev/null)
cargo +nightly fuzz build
found="$logs/found"
rm -f "$found"

# run TARGET MEMORY: MEMORY is a limit in MB.
run() {
    status=0
    nice -n 19 cargo +nightly fuzz run "$1" -- \
        -max_total_time="$seconds" -max_len=8192 -rss_limit_mb="$2" -timeout=30 -print_final_stats=1 \
        >"$logs/$1.log" 2>&1 || status=$?
    echo "$1: exit $status, $(grep -c . "$logs/$1.log") lines, \
$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$1.log") inputs" | tee -a "$logs/summary.log"
    [ "$status" -eq 0 ] || echo "$1" >>"$found"
}

# pairs MEMORY TARGET..
pairs() {
    memory=$1
    shift
    while [ $# -gt 0 ]; do
        run "$1" "$memory" &
        shift
        if [ $# -gt 0 ]; then
            run "$1" "$memory" &
            shift
        fi
        wait
    done
}

pairs 512 map_sglang map_trtllm map_vllm map_vllm_ascend map_eplb plan config wire
pairs 4096 pickle zip npy safetensors json jsonl csv parquet checkpoint forward loads
[ ! -s "$found" ]
