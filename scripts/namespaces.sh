#!/bin/sh
# Runs ranks over MPI, with and without aggregation, in two network namespaces of this machine that represent
# nodes. One shaped link joins them. Prints the bytes that crossed the link and the step times. Nothing leaves
# the machine. Needs root, iproute2 and Open MPI.
#
#   scripts/namespaces.sh EVENKEEL [RATE [DELAY]] -- [further arguments of evenkeel run]
#
# RANKS (8) is the total number of ranks. WAYS ("none:1 node:1") are the compared variants, as
# AGGREGATE:CHUNKS.
set -eu

skip() {
	"$(dirname "$0")/../.ci/skipped" "$1" "$0"
	exit 0
}

evenkeel=${1:?the evenkeel to run, built with --features mpi}
shift
rate=1gbit
delay=0.2ms
[ $# -gt 0 ] && [ "$1" != -- ] && { rate=$1; shift; }
[ $# -gt 0 ] && [ "$1" != -- ] && { delay=$1; shift; }
[ $# -gt 0 ] && shift
if [ $# -eq 0 ]; then
	set -- --model gpt-oss-20b --hidden 1024 --intermediate 64 --batch-tokens 512 --steps 12 --policy eplb --check
fi

[ "$(id -u)" = 0 ] || skip "no root for namespaces"
for tool in ip tc mpirun unshare python3; do
	command -v $tool >/dev/null || skip "no $tool"
done

ranks=${RANKS:-8}
ways=${WAYS:-none:1 node:1}
run=evenkeel-$$
folder=$(mktemp -d)
clean() {
	for node in a b; do
		ip netns del $run-$node 2>/dev/null || true
	done
	rm -rf "$folder"
}
trap clean EXIT INT TERM
for node in a b; do
	ip netns add $run-$node 2>"$folder/why" || skip "no network namespaces ($(cat "$folder/why"))"
done
# Names of interfaces have at most 15 characters. They only need to be unique until they are in their
# namespaces.
ip link add ek$$a type veth peer name ek$$b 2>"$folder/why" || skip "no veth pairs ($(cat "$folder/why"))"
for node in a b; do
	at=$([ $node = a ] && echo 1 || echo 2)
	ip link set ek$$$node netns $run-$node
	in="ip netns exec $run-$node"
	$in ip link set ek$$$node name wire
	$in ip address add 10.77.0.$at/24 dev wire
	$in ip link set lo up
	$in ip link set wire up
	# Not every kernel can delay packets. A token bucket at least limits the rate.
	if $in tc qdisc add dev wire root netem delay "$delay" rate "$rate" limit 100000 2>/dev/null; then
		shaped="$rate, $delay each way"
	elif $in tc qdisc add dev wire root tbf rate "$rate" burst 128kb latency 100ms 2>"$folder/why"; then
		shaped="$rate, no delay (no netem in this kernel)"
	else
		skip "no shaped link ($(cat "$folder/why"))"
	fi
done

# A replacement of ssh for mpirun, called as HOST COMMAND..
cat >"$folder/agent" <<AGENT
#!/bin/sh
case \$1 in *.1) node=a ;; *) node=b ;; esac
shift
exec ip netns exec $run-\$node unshare --uts sh -c "hostname \$node; \$*"
AGENT
chmod +x "$folder/agent"

sent() {
	for node in a b; do
		ip netns exec $run-$node cat /sys/class/net/wire/statistics/tx_bytes
	done | paste -sd+ - | sed 's/^/echo $((/; s/$/))/' | sh
}

for way in $ways; do
	before=$(sent)
	timeout 300 ip netns exec $run-a unshare --uts sh -c 'hostname a; exec "$@"' sh \
		mpirun --allow-run-as-root --oversubscribe --host 10.77.0.1:$((ranks / 2)),10.77.0.2:$((ranks / 2)) -n "$ranks" --mca plm_rsh_agent "$folder/agent" \
		--mca oob_tcp_if_include 10.77.0.0/24 --mca btl self,vader,tcp --mca btl_tcp_if_include 10.77.0.0/24 \
		"$evenkeel" run "$@" --ranks "$ranks" --nodes 2 --redundant 8 --transport mpi --no-baseline --json \
		--aggregate "${way%:*}" --chunks "${way#*:}" \
		>"$folder/$way.json" || { echo "failed: $way"; exit 1; }
	echo $(($(sent) - before)) >"$folder/$way.bytes"
done

echo "two namespaces, $((ranks / 2)) ranks each, one link of $shaped: evenkeel run $*"
python3 - "$folder" $ways <<'PYTHON'
import json, statistics, sys

folder, *ways = sys.argv[1:]
print(f"{'':<10} {'chunks':>6} {'link, MiB':>10} {'counted, MiB':>13} {'dispatch':>9} {'combine':>8} {'step, ms':>9} {'layer, ms':>10} "
      f"{'waiting':>8} {'modelled, ms':>13}  check")
for way in ways:
    run = json.load(open(f"{folder}/{way}.json"))
    link = int(open(f"{folder}/{way}.bytes").read())
    wire = run["transport"]
    far = {purpose: of["other_nodes_bytes"] for purpose, of in wire["sent"].items()}
    mib = lambda number: f"{number / 2**20:.2f}"
    step = statistics.median(step["wall_ms"][1] for step in run["steps"][1:])
    modelled = wire["modelled"] and f"{wire['modelled']['layer_ms']:.1f}"
    check = run["check"] and ("ok" if run["check"]["ok"] else "FAILED")
    print(f"{way.split(':')[0]:<10} {wire['chunks']:>6} {mib(link):>10} {mib(sum(far.values())):>13} {mib(far['dispatch']):>9} "
          f"{mib(far['combine']):>8} {step:>9.1f} {wire['layer_ms']:>10.1f} {wire['communication_share']:>8.0%} {modelled or '-':>13}  "
          f"{check or '-'}; {wire['hosts']} hosts")
PYTHON
