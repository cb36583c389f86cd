#!/usr/bin/env bash
# Tests and measures the claims of the documentation about a GPU, with the programs in a folder that
# scripts/gpu_kit.sh built (`make gpu` does both). It needs the driver, NVRTC and, if installed, cuBLAS; for
# comparison a python3 with torch; no Rust. Each part prints its name. A failed part does not stop the others,
# but the script then fails at the end.
#
#   scripts/gpu.sh target/gpu [tests|benches|layers|runs|nccl|sanitizer]..        all parts by default
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kit=${1:-target/gpu} python=${PYTHON:-python3} failed=0
shift || true
parts=${*:-tests benches layers runs nccl sanitizer}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || {
    echo "this wants a machine with an NVIDIA GPU and its driver" >&2
    exit 1
}
# Folders of CUDA's libraries, of a toolkit or of pip's packages for torch, in case the loader does not find
# them.
folders=$(ls -d /usr/local/cuda*/lib64 2>/dev/null
    "$python" -c 'import glob, site
for base in site.getsitepackages():
    print("\n".join(glob.glob(base + "/nvidia/*/lib")))' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(echo $folders | tr ' ' ':')"

part() {
    printf '\n== %s\n' "$*"
    "$@" || {
        failed=1
        printf 'FAILED: %s\n' "$*"
    }
}

# Repeats the tests under compute-sanitizer, which is part of CUDA's toolkit.
sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: no compute-sanitizer on the path"
        return 0
    fi
    compute-sanitizer --tool "$1" --error-exitcode 1 "$2" --skip on_a_host --test-threads 1 "$3" | tail -n 20
}

# Runs two ranks on two GPUs over NCCL, as a launcher would start them.
two_gpus() {
    if (($(nvidia-smi --list-gpus | wc -l) < 2)); then
        echo "skipped: NCCL takes a GPU per rank, and there is one"
        return 0
    fi
    local rank ended=0 processes=()
    for rank in 0 1; do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29517 timeout 300 "$kit/evenkeel" run \
            --backend cuda --transport nccl --ranks 2 --redundant 8 --model qwen3-30b-a3b "$@" &
        processes+=($!)
    done
    for rank in "${processes[@]}"; do
        wait "$rank" || ended=1
    done
    return "$ended"
}

run=("$kit/evenkeel" run --backend cuda --ranks 8 --redundant 8)
for name in $parts; do
    case $name in
    tests)
        part "$kit/test-cuda" --nocapture cuda::
        part "$kit/test-exec" --nocapture --skip on_a_host exec_cuda::
        ;;
    benches)
        part "$kit/bench-cuda"
        part "$kit/bench-ffn_cuda" ffn
        ;;
    layers)
        part "$kit/bench-ffn_cuda" layer
        part "$python" bindings/python/benches/layer.py
        ;;
    runs)
        for model in mixtral-8x7b qwen3-30b-a3b; do
            for tokens in 512 4096 16384; do
                for policy in eplb recourse; do
                    part "${run[@]}" --model "$model" --policy "$policy" --batch-tokens "$tokens" --steps 10
                done
            done
            part "${run[@]}" --model "$model" --policy recourse --batch-tokens 4096 --steps 10 --ffn cublas
        done
        part "${run[@]}" --model qwen3-30b-a3b --batch-tokens 128 --steps 6 --replan-every 2 --check
        part "${run[@]}" --model gpt-oss-20b --batch-tokens 128 --steps 2 --check --no-baseline
        part "$kit/evenkeel" calibrate experts --backend cuda --model qwen3-30b-a3b
        ;;
    nccl)
        part two_gpus --batch-tokens 128 --steps 2 --check --verify-plans --no-baseline
        part two_gpus --batch-tokens 128 --steps 6 --replan-every 2 --check --verify-plans
        part two_gpus --batch-tokens 4096 --steps 10
        ;;
    sanitizer)
        for tool in memcheck racecheck synccheck initcheck; do
            part sanitize "$tool" "$kit/test-cuda" cuda::
            part sanitize "$tool" "$kit/test-exec" exec_cuda::
        done
        ;;
    *)
        echo "no part $name" >&2
        exit 2
        ;;
    esac
done
exit "$failed"
