# Every target does the set-up it needs, and nothing again that is done.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
DEV := .venv
DEMO := .venv-demo
HUB0 := .venv-hub0
ORT0 := .venv-ort0
ALLOCATORS := libjemalloc2 libtcmalloc-minimal4 libmimalloc2.0
UV := $(shell command -v uv || echo build/uv/bin/uv)
PIP = $(UV) pip install --quiet --constraints constraints.txt --python
RUST := $(shell git ls-files 'rust/*' Cargo.toml Cargo.lock 2>/dev/null || find rust -name '*.rs')
PY := $(shell git ls-files 'python/*' 2>/dev/null || find python -name '*.py')
SOURCES := python tests benches rust/core rust/py rust/fuzz/src rust/fuzz/targets
export CARGO_TERM_QUIET ?= true
# Hundreds of tests start a process, and each would compile the sources of torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test rust-test lint pytest hub0 jemalloc bench wheel clean harden models fuzz fuzz-build fuzz-sizes asan

help:
	@echo "make demo    the same rollouts with and without memweir: a table and a chart"
	@echo "make test    Rust tests, lints and Python tests"
	@echo "make bench   every table of the README"
	@echo "make jemalloc  the Python tests under a preloaded jemalloc"
	@echo "make hub0    an environment with transformers 4.57, whose errors the tests read, too"
	@echo "make harden  models of threads, the address sanitizer, some fuzzing: docs/hardening.md"
	@echo "make fuzz    every target for FUZZ_SECONDS=600"
	@echo "make wheel   a release wheel in build/wheels"

demo: build/demo.stamp
	$(DEMO)/bin/memweir demo $(DEMO_ARGS)
	$(DEMO)/bin/memweir demo sessions

test: rust-test lint pytest

rust-test: build/tools.stamp
	if cargo nextest --version >/dev/null 2>&1; \
	then cargo nextest run --workspace --locked --cargo-quiet --status-level fail; \
	else cargo test --workspace --locked; fi
	cargo test --doc -p memweir-core --locked

lint: build/dev.stamp
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo fmt --manifest-path rust/fuzz/Cargo.toml --check
	cargo clippy --manifest-path rust/fuzz/Cargo.toml --all-targets --locked --target-dir target -- -D warnings
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	@long=$$(find $(SOURCES) -name '*.rs' -o -name '*.py' | xargs wc -l | awk '$$1 > 500 && $$2 != "total"'); \
	  [ -z "$$long" ] || { echo "more than 500 lines, so more than one idea: $$long" >&2; exit 1; }
	$(DEV)/bin/mypy
	cd $(DEV) && bin/python -m mypy.stubtest memweir._core --ignore-disjoint-bases --allowlist ../tests/stubtest.txt --ignore-unused-allowlist

HALF := tests/pixels tests/process tests/ort tests/cli
pytest: build/dev.stamp build/hub0.stamp build/ort0.stamp build/allocators.stamp
# Two halves side by side: most tests wait, for processes or for each other's threads.
	$(DEV)/bin/python -X dev -W error -m pytest -p no:cacheprovider $(HALF) $(PYTEST_ARGS) & half=$$!; \
	status=0; \
	$(DEV)/bin/python -X dev -W error -m pytest -p no:cacheprovider tests $(HALF:%=--ignore=%) $(PYTEST_ARGS) || status=$$?; \
	PYTHONPATH=python $(ORT0)/bin/python -X dev -W error -m pytest -p no:cacheprovider tests/ort $(PYTEST_ARGS) || status=$$?; \
	wait $$half || status=$$?; \
	exit $$status

# The same tests under another allocator. Not within `test`: it takes as long again.
JEMALLOC = $(firstword $(wildcard /usr/lib/*-linux-gnu/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2))
jemalloc: build/dev.stamp build/hub0.stamp build/allocators.stamp
	@[ -n "$(JEMALLOC)" ] || { echo "libjemalloc.so.2 is not installed" >&2; exit 1; }
	LD_PRELOAD=$(JEMALLOC) $(DEV)/bin/python -X dev -W error -m pytest -p no:cacheprovider tests $(PYTEST_ARGS)

bench: build/dev.stamp
	$(PIP) $(DEV)/bin/python -r pyproject.toml --extra bench
	$(DEV)/bin/python -m benches $(BENCH_ARGS)

hub0: build/hub0.stamp

wheel: build/wheel.stamp

# What takes a compiler of its own says why it is skipped where there is none. The builds go side by
# side, since each waits for one crate most of the time; fuzzing has its half minute to itself.
HARDEN_SECONDS ?= 6
ABREAST = -j$(shell nproc 2>/dev/null || echo 2) $(if $(filter output-sync,$(.FEATURES)),-Otarget)
harden: build/tools.stamp
	$(MAKE) --no-print-directory $(ABREAST) fuzz-build asan models
	rust/fuzz/run $(HARDEN_SECONDS)
	$(MAKE) --no-print-directory fuzz-sizes FUZZ_SECONDS=$(HARDEN_SECONDS)

FUZZ_SECONDS ?= 600
fuzz: fuzz-sizes build/tools.stamp
	rust/fuzz/run $(FUZZ_SECONDS)

fuzz-build: build/tools.stamp
	+rust/fuzz/run build

fuzz-sizes: build/env.stamp
	$(DEV)/bin/python tests/fuzz/sizes.py $(FUZZ_SECONDS)

models: build/tools.stamp
	+RUSTFLAGS="--cfg loom --cfg shuttle" cargo test -p memweir-core --locked --test 'model_*' \
	  --profile harden --target-dir target/models

asan: build/env.stamp
	+rust/fuzz/asan core
	+rust/fuzz/asan extension $(DEV)/bin/python

clean:
	rm -rf build target $(DEV) $(DEMO) $(HUB0) $(ORT0)

build/tools.stamp: Cargo.toml
	@command -v cargo >/dev/null || { \
	  echo "memweir needs Rust: install it with your package manager or from rust-lang.org" >&2; exit 1; }
	@need=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); have=$$(rustc --version | cut -d' ' -f2); \
	  [ "$$(printf '%s\n%s\n' "$$need" "$$have" | sort -V | head -1)" = "$$need" ] || { \
	  echo "memweir needs Rust $$need or newer, and this is $$have: update it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "memweir needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@mkdir -p build
	@touch $@

build/uv/bin/uv: build/tools.stamp
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(DEV)/bin/python: | $(UV) build/tools.stamp
	$(UV) venv --quiet --python $(PYTHON) $(DEV)

# The environment changes with what it is made of, the extension with the Rust in it.
build/env.stamp: pyproject.toml constraints.txt | $(DEV)/bin/python
	$(PIP) $(DEV)/bin/python -r pyproject.toml --extra test
	@touch $@

build/dev.stamp: build/env.stamp $(RUST)
	PATH="$(abspath $(dir $(UV))):$$PATH" VIRTUAL_ENV=$(CURDIR)/$(DEV) $(DEV)/bin/maturin develop --release --uv --quiet
	@touch $@

# The generation of Hugging Face libraries before the present one; its tests are skipped without it.
build/hub0.stamp: tests/probes/hub0.txt | $(DEV)/bin/python
	[ -x $(HUB0)/bin/python ] || $(UV) venv --quiet --python $(PYTHON) $(HUB0)
	$(UV) pip install --quiet --python $(HUB0)/bin/python -r tests/probes/hub0.txt
	@touch $@

# The oldest ONNX Runtime that mw.ort pre-packs with: its tests run with both.
build/ort0.stamp: tests/ort/ort0.txt | $(DEV)/bin/python
	[ -x $(ORT0)/bin/python ] || $(UV) venv --quiet --python $(PYTHON) $(ORT0)
	$(UV) pip install --quiet --python $(ORT0)/bin/python -r tests/ort/ort0.txt
	@touch $@

# Allocators to preload; their tests say why they are skipped where these are not to be had.
build/allocators.stamp: Makefile
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(ALLOCATORS) >/dev/null 2>&1; then \
	  apt="apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20"; \
	  install="$$apt install -y --no-install-recommends $(ALLOCATORS)"; \
	  { $$install || { $$apt update && $$install; }; } >/dev/null 2>&1 || \
	  echo "not installed: $(ALLOCATORS); their tests are skipped" >&2; fi
	@mkdir -p build
	@touch $@

build/wheel.stamp: pyproject.toml README.md LICENSE $(RUST) $(PY) | $(UV) build/tools.stamp
	rm -rf build/wheels
	$(UV) build --quiet --wheel --out-dir build/wheels
	@touch $@

build/demo.stamp: build/wheel.stamp constraints.txt
	[ -x $(DEMO)/bin/python ] || $(UV) venv --quiet --python $(PYTHON) $(DEMO)
	$(PIP) $(DEMO)/bin/python --reinstall-package memweir "$$(ls build/wheels/*.whl)[demo]"
	@touch $@
