#!/usr/bin/env bash
# Checks that every package builds with each of its features alone: scripts/check_features.sh
#
# In the root of the workspace, cargo selects the default members, among them the program, which turns on
# features of the library. cargo-hack calls cargo there for the root package. The root package is therefore
# checked by its name.
#
# `make test` builds with MPI, HiGHS and the oracle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
skipped=(highs mpi oracle)
root_features() {
    "${CARGO:-cargo}" metadata --no-deps --format-version 1 | "${PYTHON:-python3}" -c '
import json, sys
packages = json.load(sys.stdin)["packages"]
print(*next(package["features"] for package in packages if package["name"] == "evenkeel"), sep="\n")'
}
# An assignment fails if the list cannot be read. A list within `for` would be empty.
features=$(root_features | grep -vxF "$(printf '%s\n' "${skipped[@]}")")
for feature in "" $features; do
    echo "checking evenkeel with ${feature:-no feature}"
    "${CARGO:-cargo}" check --package evenkeel --lib --no-default-features ${feature:+--features "$feature"}
done
"${CARGO:-cargo}" hack check --each-feature --no-dev-deps --workspace --exclude evenkeel \
    --exclude-features "$(IFS=, && echo "${skipped[*]}")"
