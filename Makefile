# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up .venv first.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
TRITON  ?= 3.6.0
FILES   := attndsl codegen tests examples

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint fmt types pytest sweep record test-triton-min test-gpu card bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP)  ## install the package and its tools into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else "attndsl needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	@echo "== setting up $(VENV) (once; torch is the large part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## compile an example, run it forward and backward, check it, show its kernel
	@$(BIN)/python examples/demo.py

test: lint types pytest  ## everything that must hold: lint, types, tests

lint: $(STAMP)  ## ruff: lint and format, without changing a file
	@echo "== ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run make fmt"; exit 1; }

types: $(STAMP)  ## mypy, strict
	@echo "== mypy"
	@$(BIN)/mypy --no-error-summary

pytest: $(STAMP)  ## the tests and doctests
	@echo "== pytest ($(WORKERS) workers)"
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

fmt: $(STAMP)  ## format Python and .attn files
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/attndsl fmt examples/*.attn

sweep: $(STAMP)  ## more random programs and masks, more dtypes (long)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m sweep

record: $(STAMP)  ## what kernels take on sm_90, compiled and written down anew; prints what changed
	@$(BIN)/python tests/codegen/resources.py --processes $(WORKERS)

test-triton-min:  ## the tests with the oldest Triton supported (TRITON=3.6.0), in .venv-min
	@# The interpreter of Triton 3.6 reads scalars in a way that NumPy 2.4 no longer allows.
	@test -x .venv-min/bin/python || $(PYTHON) -m venv .venv-min
	@.venv-min/bin/python -m pip install -qq --constraint constraints.txt --editable '.[dev]' 'triton==$(TRITON)' 'numpy<2.4'
	@echo "== pytest with Triton $(TRITON) ($(WORKERS) workers)"
	@.venv-min/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

test-gpu: $(STAMP)  ## all examples on a CUDA GPU, in fp16 and bf16
	@$(BIN)/python tests/gpu/run.py

card: $(STAMP)  ## what only a CUDA GPU can say, in 9 minutes: tests, compute-sanitizer, benches, into card/
	@$(BIN)/python tests/gpu/card.py -o card

bench: $(STAMP)  ## measure it against its peers, all suites in their quick form, with all threads
	@env -u OMP_NUM_THREADS $(BIN)/attndsl bench --quick

clean:  ## remove what the targets above made
	@rm -rf .venv .venv-min build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
