#!/usr/bin/env bash
# Tests the service against its own OpenAPI document. schemathesis sends valid and invalid requests, and
# checks every reply.
#
# Usage: cli/tests/serve_conformance.sh BINARY SCHEMATHESIS [SECONDS]
#
# Two parts are left out: the event stream, which does not end, and the check that all schema-conforming
# requests are accepted. JSON Schema cannot express that slots divide over ranks, or that a model's loads keep
# their shape.
set -euo pipefail
binary=$(realpath "$1")
schemathesis=$(realpath -s "$2")
seconds=${3:-30}
folder=$(mktemp -d)
server=
trap '[[ -z "$server" ]] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT

cat >"$folder/config.toml" <<'TOML'
[limits]
requests_per_second = 0
body_seconds = 2
models = 4096
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
[[ -n "$url" ]] || { cat "$folder/log" >&2; exit 1; }
# A model with a plan lets requests about `m` reach the code behind the names.
${PYTHON:-python3} - "${url}v1/models/m" <<'PYTHON'
import json, sys, urllib.request

def ask(method, path, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(sys.argv[1] + path, json.dumps(body).encode(), headers, method=method)
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).read()

ask("PUT", "", {"ranks": 4, "redundant": 8})
ask("POST", "/loads", {"steps": [{"step": step, "counts": [[9, 5, 1, 7], [3, 3, 8, step]]} for step in range(12)]})
PYTHON

# check [OPTION..]
check() {
    timeout $((seconds + 120)) "$schemathesis" "$@" run "${url}openapi.json" --checks all \
        --exclude-checks positive_data_acceptance --exclude-path '/v1/models/{model}/events' --max-time $((seconds / 2)) --seed 7 \
        --continue-on-failure --request-timeout 20
}
cd "$folder"
printf '[parameters]\n"path.model" = "m"\n' >named.toml
check
check --config-file "$folder/named.toml"
if grep -i panicked "$folder/log"; then
    echo "the service panicked" >&2
    exit 1
fi
kill "$server"
wait "$server"
server=
