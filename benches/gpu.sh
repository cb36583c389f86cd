#!/usr/bin/env bash
# What the documentation says of a GPU, measured: `make gpu` runs this after the tests. Each part says what it is; a part that
# fails does not keep the others from running, and fails the whole in the end.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo} python=${PYTHON:-python3} features=${FEATURES:-highs,evenkeel-solver/oracle}
failed=0

part() {
    printf '\n== %s\n' "$*"
    "$@" || { failed=1; printf 'FAILED: %s\n' "$*"; }
}

# The tests once more under compute-sanitizer, which comes with the CUDA toolkit: fewer cases would be kinder to it, but these are
# the ones that are known to be right.
sanitise() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: no compute-sanitizer on the path"
        return 0
    fi
    local tests
    tests=$("$cargo" test --release --features "$features" --test cuda --test exec_cuda --no-run --message-format=json 2>/dev/null |
        "$python" -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line) if line.startswith("{") else {}
    if built.get("executable") and built.get("target", {}).get("kind") == ["test"]:
        print(built["executable"])') || return 1
    local tool test
    for tool in memcheck racecheck synccheck initcheck; do
        for test in $tests; do
            compute-sanitizer --tool "$tool" --error-exitcode 1 "$test" --skip on_a_host --test-threads 1 | tail -3 || return 1
        done
    done
}

run="$cargo run --release --quiet -- run --backend cuda --ranks 8 --redundant 8"

part "$cargo" bench --bench cuda
part "$cargo" bench --bench ffn_cuda
part "$python" bindings/python/benches/layer.py
for model in mixtral-8x7b qwen3-30b-a3b; do
    for tokens in 512 4096 16384; do
        for policy in eplb recourse; do
            part $run --model "$model" --policy "$policy" --batch-tokens "$tokens" --steps 20
        done
        part $run --model "$model" --policy recourse --batch-tokens "$tokens" --steps 20 --ffn cublas
    done
done
part $run --model qwen3-30b-a3b --batch-tokens 512 --steps 6 --replan-every 2 --check
part $run --model gpt-oss-20b --batch-tokens 512 --steps 3 --check --alone
part "$cargo" run --release --quiet -- calibrate --backend cuda --model qwen3-30b-a3b
part sanitise
exit "$failed"
