#!/usr/bin/env bash
# Tests the plug-ins with the stacks' own modules, as published, and torch on the CPU (`make stacks`).
# With the argument `fetch` it only fetches them.
#
# Everything goes into .tools/stacks, once and without root. The modules come from the wheels of vllm, sglang
# and vllm-ascend (a download of 400 MB, of which a few modules stay). torch comes from a Python that has it,
# or from Debian's unpacked packages. .tools/stacks/bin has the Python and the torchrun that find it. A
# missing download is a skip, which is an error in CI. A download that does not work is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=$PWD/.tools/stacks
wheels=(vllm==0.33.0 sglang==0.5.23 vllm-ascend==0.23.0)
folders="sglang/srt/ vllm/config/ vllm/distributed/ vllm/model_executor/layers/fused_moe/ vllm_ascend/eplb/"
tests=(split_hook sglang_split vllm_split active_split stacks stack_policies stack_dispatch acceptance)
mkdir -p "$here"

# skip REASON DETAIL
skip() {
    .ci/skipped "$1 ($2)" "make stacks"
}

# Runs a command with Debian's torch on its library path, if torch was unpacked.
with_libraries() {
    LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-} "$@"
}

# Prints the path of a Python with torch and venv, or nothing. The last failure's reason goes to stderr.
with_torch() {
    local python said
    for python in "${PYTHON:-python3}" python3 /usr/bin/python3; do
        if said=$(PYTHONPATH=$modules with_libraries "$python" -c 'import torch, numpy, venv, ensurepip' 2>&1); then
            command -v "$python"
            return
        fi
    done
    printf '%s\n' "$said" >&2
}

# Unpacks Debian's torch where this script finds it. Only missing or old package lists require root.
debian_torch() {
    [[ -x /usr/bin/python3 ]] && command -v apt-get dpkg >/dev/null || return 1
    fetch_debian && return
    [[ $(id -u) == 0 ]] && apt-get update -qq >/dev/null 2>&1 && fetch_debian
}

fetch_debian() {
    local packages
    # The machine's C library stays, since its loader accepts no other.
    packages=$(apt-get install --simulate --no-install-recommends -y python3-torch 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\).*/\1/p' | grep -vxE '(libc6|libc-bin)(:.*)?') || return 1
    echo "make stacks: unpacking Debian's python3-torch into .tools/stacks (once)"
    rm -rf "$here/deb" "$here/unpacked"
    mkdir -p "$here/deb" "$here/unpacked"
    # shellcheck disable=SC2086  # a list of names
    (cd "$here/deb" && apt-get download -qq $packages >/dev/null 2>&1) || return 1
    for package in "$here"/deb/*.deb; do
        dpkg -x "$package" "$here/unpacked" || return 1
    done
    rm -rf "$here/deb"
    mv "$here/unpacked" "$here/debian"
}

# Finds Debian's torch, if it was unpacked: its modules, and every folder with a library, OpenBLAS before
# slower ones.
libraries='' modules=''
find_debian() {
    [[ -d $here/debian ]] || return 0
    modules=$here/debian/usr/lib/python3/dist-packages
    local folders
    folders=$(find "$here/debian" -name 'lib*.so*' -not -path '*/share/*' -printf '%h\n' | sort -u)
    libraries=$( (grep openblas <<<"$folders"; grep -v openblas <<<"$folders") | tr '\n' ':')
}

.ci/debian "${PYTHON:-python3} -c 'import venv, ensurepip'" python3-venv || true
find_debian
python=$(with_torch 2>/dev/null)
if [[ -z $python && ! -d $here/debian ]] && debian_torch; then
    find_debian
    python=$(with_torch 2>/dev/null)
fi
if [[ -z $python && -d $here/debian ]]; then
    echo "make stacks: Debian's torch is unpacked in .tools/stacks/debian and cannot be imported:" >&2
    with_torch
    exit 1
fi
if [[ -z $python ]]; then
    skip "no PyTorch for the stacks" "PYTHON=.. names a Python with torch, NumPy and venv; Debian's python3-torch cannot be had here"
    exit 0
fi

if [[ ! -f $here/venv/ready ]]; then
    rm -rf "$here/venv"
    "$python" -m venv --system-site-packages "$here/venv"
    if ! "$here/venv/bin/pip" install --quiet --disable-pip-version-check pytest msgspec; then
        skip "no pytest and msgspec" "pip could not fetch them"
        exit 0
    fi
    touch "$here/venv/ready"
fi
# Debian's modules come after those of the environment.
[[ -z $modules ]] || echo "$modules" >"$(echo "$here"/venv/lib/python3*/site-packages)/debian.pth"
for missing in 'triton>=3.1,<3.3' pyyaml; do
    module=${missing%%>*}
    "$here/venv/bin/python" -c "import ${module/pyyaml/yaml}" 2>/dev/null ||
        "$here/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$missing" ||
        skip "no $module" "pip could not fetch it"
done
mkdir -p "$here/bin"
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s${LD_LIBRARY_PATH:-} exec %s/venv/bin/python "$@"\n' "'$libraries'" "$here" >"$here/bin/python3"
printf '#!/bin/sh\nexec %s/bin/python3 -m torch.distributed.run "$@"\n' "$here" >"$here/bin/torchrun"
chmod +x "$here/bin/python3" "$here/bin/torchrun"
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
        skip "no wheels of the stacks" "pip could not fetch them; tests that need torch alone are run"
    fi
fi
# `stacks.sh fetch` only fetches.
if [[ ${1:-} == fetch ]]; then
    exit 0
fi
# The other virtual environment may be newer than this one.
if ! .tools/python/bin/python -c 'import maturin' 2>/dev/null &&
    ! .tools/python/bin/pip install --quiet --disable-pip-version-check 'maturin>=1.10,<2'; then
    skip "no maturin" "pip could not fetch it"
    exit 0
fi

if [[ $(cat "$here/modules/ready" 2>/dev/null) == "$folders" ]]; then
    export EVENKEEL_STACKS=$here/modules
fi

# The Python of `make python` builds the wheel, so nothing is compiled twice.
PATH=$PWD/.tools/python/bin:$PATH MATURIN_PEP517_ARGS="--profile dev" .tools/python/bin/pip wheel --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --wheel-dir "$here/dist" .
"$here/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$here"/dist/evenkeel-*.whl
"$here/bin/python3" -m pytest -q $(printf "bindings/python/tests/test_%s.py " "${tests[@]}")
