#!/usr/bin/env bash
# Builds the programs of scripts/gpu.sh into a folder: the command, the GPU's tests and its benchmarks. They
# are stripped, so that they can be copied to a machine with a GPU and no Rust.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo} python=${PYTHON:-python3} features=${FEATURES:-highs,evenkeel-solver/oracle} profile=${PROFILE:-release}
kit=${1:-target/gpu}

mkdir -p "$kit"
"$cargo" test --profile "$profile" -p evenkeel-cuda -p evenkeel-exec -p evenkeel-cli --features "evenkeel-exec/cuda,$features" \
    --test it --bench cuda --bench ffn_cuda --bin evenkeel \
    --no-run --message-format=json | "$python" -c '
import json, re, shutil, sys

kit = sys.argv[1]
for line in sys.stdin:
    built = json.loads(line)
    target, executable = built.get("target", {}), built.get("executable")
    # Cargo also builds a test program of the command, without any tests. It is skipped.
    if executable and not (target["kind"] == ["bin"] and built["profile"]["test"]):
        kind = {"bin": "", "test": "test-", "bench": "bench-"}[target["kind"][0]]
        package = re.search("#evenkeel-([a-z]+)@", built["package_id"]).group(1)
        name = package if kind == "test-" else target["name"]
        shutil.copy2(executable, f"{kit}/{kind}{name}")
' "$kit"
# The tests contain the paths of their sources. Without symbols they have a tenth of the size.
strip "$kit"/*
ls -l "$kit"
