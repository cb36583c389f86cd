#!/usr/bin/env bash
# Tests the plug-ins with the stacks' own modules, as published, and torch on the CPU (`make stacks`).
#
# Everything is put into .tools/stacks, once, without root: the modules out of the wheels of vllm, sglang and vllm-ascend (400 MB are
# fetched, a few are kept), and torch from a Python that has it or from Debian's packages, unpacked. What cannot be had is said,
# and that the tests that need it are skipped: a machine without network has not failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=$PWD/.tools/stacks
wheels=(vllm==0.33.0 sglang==0.5.23 vllm-ascend==0.23.0)
folders="sglang/srt/ vllm/config/ vllm/distributed/ vllm/model_executor/layers/fused_moe/ vllm_ascend/eplb/"
tests=(split sglang_split vllm_split active_split stacks stack_policies stack_dispatch acceptance)
mkdir -p "$here"

skip() {
    printf 'make stacks: %s\nmake stacks: skipped: %s\n' "$1" "$2" >&2
}

# A Python with torch and venv: what it is called, or nothing.
with_torch() {
    local python
    for python in "${PYTHON:-python3}" python3 /usr/bin/python3; do
        if "$python" -c 'import torch, numpy, venv, ensurepip' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
}

# Debian's torch, unpacked where this script can find it. Needs no root but for package lists that are not there yet.
debian_torch() {
    [[ -x /usr/bin/python3 ]] && command -v apt-get dpkg >/dev/null || return 1
    local list
    list() { apt-get install --simulate --no-install-recommends -y python3-torch 2>/dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p'; }
    if [[ -z $(list) && $(id -u) == 0 ]]; then
        apt-get update -qq >/dev/null 2>&1 || return 1
    fi
    local packages
    packages=$(list)
    [[ -n $packages ]] || return 1
    echo "make stacks: unpacking Debian's python3-torch into .tools/stacks (once)"
    mkdir -p "$here/deb" "$here/debian"
    # shellcheck disable=SC2086  # a list of names
    (cd "$here/deb" && apt-get download -qq $packages >/dev/null 2>&1) || return 1
    for package in "$here"/deb/*.deb; do
        dpkg -x "$package" "$here/debian"
    done
    rm -rf "$here/deb"
}

# What to set so that /usr/bin/python3 finds Debian's torch.
debian_paths() {
    export PYTHONPATH=$here/debian/usr/lib/python3/dist-packages
    local lib
    for lib in "$here"/debian/usr/lib "$here"/debian/lib/*-linux-gnu "$here"/debian/usr/lib/*-linux-gnu; do
        export LD_LIBRARY_PATH=$lib:$lib/openblas-pthread:$lib/blas:$lib/lapack:${LD_LIBRARY_PATH:-}
    done
}

[[ -d $here/debian ]] && debian_paths
python=$(with_torch)
if [[ -z $python ]] && debian_torch; then
    debian_paths
    python=$(with_torch)
fi
if [[ -z $python ]]; then
    skip "no Python with torch, NumPy and venv (PYTHON=.. names one), and Debian's python3-torch cannot be had here" \
        "all tests of the plug-ins inside the stacks"
    exit 0
fi

if [[ ! -f $here/venv/ready ]]; then
    rm -rf "$here/venv"
    "$python" -m venv --system-site-packages "$here/venv"
    if ! "$here/venv/bin/pip" install --quiet --disable-pip-version-check pytest msgspec; then
        skip "pytest and msgspec could not be fetched" "all tests of the plug-ins inside the stacks"
        exit 0
    fi
    "$here/venv/bin/python" -c 'import triton' 2>/dev/null ||
        "$here/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps 'triton>=3.1,<3.3' ||
        skip "Triton could not be fetched" "vLLM's kernel in Triton's interpreter"
    touch "$here/venv/ready"
fi
# The other virtual environment may be newer than this one.
if ! .tools/python/bin/python -c 'import maturin' 2>/dev/null &&
    ! .tools/python/bin/pip install --quiet --disable-pip-version-check 'maturin>=1.10,<2'; then
    skip "maturin could not be fetched" "all tests of the plug-ins inside the stacks"
    exit 0
fi

if [[ $(cat "$here/modules/ready" 2>/dev/null) != "$folders" ]]; then
    echo "make stacks: fetching the wheels of ${wheels[*]} (400 MB, once)"
    if "$here/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$here/wheels" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_34_x86_64 --python-version 3.11 --abi cp311 --abi abi3 \
        "${wheels[@]}"; then
        "$here/venv/bin/python" - "$here" "$folders" <<'UNPACK'
import pathlib, sys, zipfile
here = pathlib.Path(sys.argv[1])
wanted = tuple(sys.argv[2].split())
for wheel in (here / "wheels").glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(here / "modules", [n for n in archive.namelist() if n.startswith(wanted) and n.endswith(".py")])
(here / "modules" / "ready").write_text(sys.argv[2])
UNPACK
        rm -rf "$here/wheels"
    else
        skip "the wheels could not be fetched" "tests with the stacks' own modules; those that need torch alone are run"
    fi
fi
if [[ $(cat "$here/modules/ready" 2>/dev/null) == "$folders" ]]; then
    export EVENKEEL_STACKS=$here/modules
fi

# By the Python that `make python` builds with: nothing is compiled twice.
PATH=$PWD/.tools/python/bin:$PATH PYTHONPATH='' .tools/python/bin/pip wheel --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --wheel-dir "$here/dist" .
"$here/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$here"/dist/evenkeel-*.whl
"$here/venv/bin/python" -m pytest -q -rs $(printf "bindings/python/tests/test_%s.py " "${tests[@]}")
