# The short ways to build, test and show evenkeel. `make help` lists them.
#
# Rust, gcc and Python are enough. The tests use HiGHS as referee, whose build wants CMake and libclang:
# where one is missing, both are fetched into .tools/ (a Python virtual environment, no root needed).

CARGO ?= cargo
PYTHON ?= python3
FUZZ_SECONDS ?= 60
CONFORMANCE_SECONDS ?= 30
KILLS ?= 200

FEATURES := highs,evenkeel-solver/oracle
EVENKEEL := $(or $(CARGO_TARGET_DIR),target)/release/evenkeel
AXE := .tools/axe/package/axe.min.js
SAMPLE := traces/sample-prefill.csv.zst
CLUSTER := --ranks 8 --redundant 8

# libclang is looked for where clang-sys, which loads it, looks. libclang-cpp is another library.
CLANG_FOLDERS := /usr/lib /usr/lib64 /usr/local/lib /usr/lib/*-linux-gnu /usr/lib/llvm-*/lib \
	/usr/lib64/llvm*/lib64 /Library/Developer/CommandLineTools/usr/lib
CLANG_NAMES := libclang.so libclang.so.* libclang-[0-9]*.so libclang-[0-9]*.so.* libclang.dylib
LIBCLANG := $(or $(LIBCLANG_PATH),$(wildcard $(foreach folder,$(CLANG_FOLDERS),$(addprefix $(folder)/,$(CLANG_NAMES)))))
CMAKE := $(or $(CMAKE),$(shell command -v cmake 2>/dev/null))

ifneq ($(and $(CMAKE),$(LIBCLANG)),)
TOOLS :=
WITH_TOOLS :=
else
TOOLS := .tools/ready
# Behind the PATH there is, so that its Python shadows no other. The folder's name holds Python's version.
WITH_TOOLS = PATH="$$PATH:$(CURDIR)/.tools/bin" \
	LIBCLANG_PATH="$$(echo $(CURDIR)/.tools/lib/python3*/site-packages/clang/native)"
endif

# NVRTC compiles the CUDA kernels, without a GPU. It is looked for where the loader looks; where it is missing, `make
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

.PHONY: help demo test kernels gpu gpukit mpi namespaces python stacks page page-in-chromium conformance faults check examples bench fuzz clean

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: ## Plan and compare on a sample trace; writes demo/plan.json and demo/report.html. Rust alone.
	$(CARGO) build --release
	mkdir -p demo
	$(EVENKEEL) plan $(SAMPLE) $(CLUSTER) -o demo/plan.json
	$(EVENKEEL) plan check demo/plan.json
	$(EVENKEEL) simulate $(SAMPLE) $(CLUSTER) --policies contiguous,eplb,lplb:ring,recourse --splits even,exact \
		--report demo/report.html

test: $(TOOLS) ## Run all tests and documentation examples, with HiGHS as referee.
	$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES)

kernels: $(TOOLS) $(NVRTC_READY) ## Compile the CUDA kernels for sm_80, sm_90, sm_90a and sm_100; needs no GPU.
	$(WITH_TOOLS) $(WITH_NVRTC) $(CARGO) test --workspace --features $(FEATURES) --test cubins -- --nocapture

gpukit: $(TOOLS) ## Build into target/gpu what `make gpu` runs: benches/gpu.sh runs it on a machine without Rust.
	$(WITH_TOOLS) CARGO=$(CARGO) PYTHON=$(PYTHON) FEATURES=$(FEATURES) benches/gpu_kit.sh target/gpu

gpu: gpukit $(NVRTC_READY) ## On a machine with a GPU: its tests, benchmarks and compute-sanitizer; what docs/ need is printed.
	$(WITH_NVRTC) PYTHON=$(PYTHON) benches/gpu.sh target/gpu

# Open MPI's headers want stddef.h, which is not with every libclang: the C compiler's does. HiGHS is not compiled again for it.
mpi: $(TOOLS) ## Run the executor's ranks as processes over MPI, with and without GPUs, and kill some; installs Open MPI by apt where root may.
	@if ! { command -v mpicc && command -v mpirun; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		install="apt-get install -y --no-install-recommends libopenmpi-dev openmpi-bin"; \
		$$install >/dev/null 2>&1 || { apt-get update >/dev/null 2>&1 && $$install >/dev/null 2>&1; } || true; \
	fi
	@if { command -v mpicc && mpirun --version 2>/dev/null | grep -q "Open MPI"; } >/dev/null; then \
		export CPATH="$$($(CC) -print-file-name=include)$${CPATH:+:$$CPATH}"; \
		$(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES),mpi --test exec_mpi --test exec_mpi_cuda --test network && \
		$(WITH_TOOLS) $(CARGO) clippy --features $(FEATURES),mpi --lib --bins --test exec_mpi --test exec_mpi_cuda --test network -- -D warnings; \
	else echo "skipped: no Open MPI"; fi

namespaces: $(TOOLS) ## Run ranks over MPI in two network namespaces joined by a shaped link; wants root and Open MPI.
	@if command -v mpicc >/dev/null; then \
		export CPATH="$$($(CC) -print-file-name=include)$${CPATH:+:$$CPATH}"; \
		$(WITH_TOOLS) $(CARGO) build --release --features mpi && benches/namespaces.sh $(EVENKEEL) $(LINK); \
	else echo "skipped: no Open MPI"; fi

python: .tools/python/ready ## Build the Python package, install it into .tools/python and run its tests.
	.tools/python/bin/pip install --quiet --disable-pip-version-check .
	.tools/python/bin/python -m pytest -q

stacks: .tools/python/ready $(TOOLS) ## Test the plug-ins with vLLM's, SGLang's and vllm-ascend's own modules, fetched into .tools/stacks.
	bindings/python/stacks.sh
	EVENKEEL_TORCH=$(CURDIR)/.tools/stacks/venv/bin $(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test exec_nccl -- --nocapture store

page: ## Try the page of `evenkeel serve` in a headless Chromium; skipped where there is none.
	@if $(PYTHON) tests/page/browser.py; then $(MAKE) page-in-chromium; else echo "skipped: no Chromium"; fi

# axe-core checks accessibility; without npm to fetch it, that is left out.
page-in-chromium: $(TOOLS)
	$(WITH_TOOLS) $(CARGO) build --workspace --features $(FEATURES)
	@[ -f $(AXE) ] || { command -v npm >/dev/null && mkdir -p .tools && cd .tools && npm pack --silent axe-core@4.14.1 >/dev/null && \
		mkdir -p axe && tar -xzf axe-core-4*.tgz -C axe && rm axe-core-4*.tgz; } || echo "no axe-core: accessibility is not checked"
	EVENKEEL=$(or $(CARGO_TARGET_DIR),target)/debug/evenkeel AXE=$$([ -f $(AXE) ] && echo $(AXE)) $(PYTHON) tests/page/test_page.py

conformance: $(TOOLS) .tools/schemathesis/ready ## Hold the service to its OpenAPI document for CONFORMANCE_SECONDS (30).
	$(WITH_TOOLS) $(CARGO) build --workspace --features $(FEATURES)
	tests/serve_conformance.sh $(or $(CARGO_TARGET_DIR),target)/debug/evenkeel .tools/schemathesis/bin/schemathesis \
		$(CONFORMANCE_SECONDS)

faults: $(TOOLS) ## Kill the service KILLS (200) times and check that nothing acknowledged is lost; ten kills are in `make test`.
	EVENKEEL_KILLS=$(KILLS) $(WITH_TOOLS) $(CARGO) test --workspace --features $(FEATURES) --test serve_durability -- --nocapture kills

check: $(TOOLS) ## Check formatting, lints and documentation.
	$(CARGO) fmt --all --check
	$(WITH_TOOLS) $(CARGO) clippy --workspace --all-targets --features $(FEATURES) -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --workspace

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

.tools/python/ready:
	@$(PYTHON) -m venv .tools/python && \
		.tools/python/bin/pip install --quiet --disable-pip-version-check numpy pytest || { \
		rm -rf .tools/python; \
		echo "The Python tests want Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/schemathesis/ready:
	@$(PYTHON) -m venv .tools/schemathesis && \
		.tools/schemathesis/bin/pip install --quiet --disable-pip-version-check 'schemathesis>=4.32,<5' || { \
		rm -rf .tools/schemathesis; \
		echo "The conformance test wants Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/nvrtc/ready: $(TOOLS)
	@$(PYTHON) -m venv .tools/nvrtc && \
		.tools/nvrtc/bin/pip install --quiet --disable-pip-version-check 'nvidia-cuda-nvrtc==13.0.*' || { \
		rm -rf .tools/nvrtc; \
		echo "The kernels are compiled by NVRTC: install CUDA 13 or Python's venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

.tools/ready:
	@$(PYTHON) -m venv .tools && .tools/bin/pip install --quiet --disable-pip-version-check cmake libclang || { \
		rm -rf .tools; \
		echo "HiGHS needs CMake and libclang: install them (Debian: apt-get install cmake libclang1)," >&2; \
		echo "or Python's venv module (Debian: python3-venv), so that they can be fetched into .tools/" >&2; \
		exit 1; }
	@touch $@
