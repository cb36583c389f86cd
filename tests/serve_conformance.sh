#!/usr/bin/env bash
# The service against its own OpenAPI document: schemathesis sends what the document allows and what it does not, and checks every
# reply. tests/serve_conformance.sh BINARY SCHEMATHESIS [SECONDS]
#
# Left out: the event stream, which does not end; and the check that everything the schemas allow is accepted, as JSON Schema
# cannot say that slots divide over ranks, or that a model's loads keep their shape.
set -euo pipefail
binary=$1
schemathesis=$2
seconds=${3:-30}
folder=$(mktemp -d)
server=
trap '[[ -z "$server" ]] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT

cat >"$folder/config.toml" <<'TOML'
[limits]
requests_per_second = 0
body_seconds = 2
models = 100000
[decide]
policy = "eplb"
first_after = 2
TOML
"$binary" serve --listen 127.0.0.1:0 --data "$folder/data" --config "$folder/config.toml" >"$folder/url" 2>"$folder/log" &
server=$!
for _ in $(seq 100); do
    [[ -s "$folder/url" ]] && break
    sleep 0.1
done
url=$(head -n 1 "$folder/url")
cd "$folder"
timeout $((seconds * 2 + 120)) "$schemathesis" run "${url}openapi.json" --checks all --exclude-checks positive_data_acceptance \
    --exclude-path '/v1/models/{model}/events' --max-time "$seconds" --seed 7 --continue-on-failure --request-timeout 20
if grep -i panicked "$folder/log"; then
    echo "the service panicked" >&2
    exit 1
fi
kill "$server"
wait "$server"
server=
