#!/usr/bin/env bash
# Builds what benches/gpu.sh runs into a folder: the command, the GPU's tests and its benchmarks, stripped, so that they can be
# carried to a machine with a GPU and no Rust.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo} python=${PYTHON:-python3} features=${FEATURES:-highs,evenkeel-solver/oracle} profile=${PROFILE:-release}
kit=${1:-target/gpu}

mkdir -p "$kit"
"$cargo" test --profile "$profile" --features "$features" --test cuda --test exec_cuda --bench cuda --bench ffn_cuda --bin evenkeel \
    --no-run --message-format=json | "$python" -c '
import json, shutil, sys

kit = sys.argv[1]
for line in sys.stdin:
    built = json.loads(line)
    target, executable = built.get("target", {}), built.get("executable")
    # Of the command there is a test as well, without any tests.
    if executable and not (target["kind"] == ["bin"] and built["profile"]["test"]):
        kind = {"bin": "", "test": "test-", "bench": "bench-"}[target["kind"][0]]
        shutil.copy2(executable, f"{kit}/{kind}{target['"'"'name'"'"']}")
' "$kit"
# The tests say which sources they belong to; without symbols they are a tenth of the size.
strip "$kit"/*
ls -l "$kit"
