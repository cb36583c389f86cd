#!/usr/bin/env bash
# The service against its own OpenAPI document: schemathesis sends what the document allows and what it does not, and checks every
# reply. tests/serve_conformance.sh BINARY SCHEMATHESIS [SECONDS]
#
# Left out: the event stream, which does not end; and the check that everything the schemas allow is accepted, as JSON Schema
# cannot say that slots divide over ranks, or that a model's loads keep their shape.
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
# A model with a plan, so that requests about `m` reach what lies behind the names.
json='content-type: application/json'
curl -sf -X PUT "${url}v1/models/m" -H "$json" -d '{"ranks": 4, "redundant": 8}' >/dev/null
steps=$(seq 0 11 | sed 's/.*/{"step": &, "counts": [[9, 5, 1, 7], [3, 3, 8, &]]}/' | paste -sd,)
curl -sf "${url}v1/models/m/loads" -H "$json" -d "{\"steps\": [$steps]}" >/dev/null

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
