#!/usr/bin/env bash
# Counts instructions per exact split by callgrind over the corpus of each size. Unlike times, the counts are
# the same in every run. Prints the content of benches/instructions.txt. Needs valgrind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Callgrind finds the function by its symbol.
CARGO_PROFILE_RELEASE_STRIP=none cargo build --quiet --release -p evenkeel-solver --example instructions
program="${CARGO_TARGET_DIR:-target}/release/examples/instructions"
echo "# solver/benches/instructions.sh: mean instructions per split, 192 batches per size, baseline x86-64"
for size in "4 1" "4 2" "8 1" "8 2" "16 2" "32 2" "64 2" "144 2" "288 1"; do
    # shellcheck disable=SC2086
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='instructions::solve*' \
        "$program" $size 1 2>&1 | awk -v size="${size/ /x}" \
        '/ solves,/ { solves = $2 } /Collected/ { printf "%-6s %7d\n", size, $NF / solves }'
done
