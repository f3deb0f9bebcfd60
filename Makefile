# Two commands do everything: `make demo` and `make test`. Needs Python 3.10-3.12 with venv, and a network.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first Python on PATH that will do; set PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock
SERVE_ARGS ?=
DEMO_ARGS ?=
PERF_ARGS ?=
LOAD_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=
PROFILE_ARGS ?=

.PHONY: help demo serve profile test unit integration lint format check-types perf load soak bench-live bench-batching bench-overhead lock clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "tetriserve needs Python 3.10, 3.11 or 3.12 with the modules venv and ensurepip; found:" \
			"$$(python3 --version 2>&1 || echo 'no python3')." \
			"Install one (Debian and Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing tetriserve and what it needs (about 2 GB the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing tetriserve, what it needs, and the tools for tests and load (about 2 GB the first time)"
	@$(PIP) -e '.[load,dev]'
	@touch $(VENV)/.base $@

demo: $(VENV)/.base  ## a real server, a mixed load with deadlines, images and the schedule as pictures
	@$(BIN)/tetriserve demo $(DEMO_ARGS)

serve: $(VENV)/.base  ## leave the server up; SERVE_ARGS="--policy rssp" and so on
	@$(BIN)/tetriserve serve $(SERVE_ARGS)

profile: $(VENV)/.base  ## a latency table of this machine; PROFILE_ARGS="--model /models/FLUX.1-dev" and so on
	@$(BIN)/tetriserve profile $(PROFILE_ARGS)

perf: $(VENV)/.base  ## Triton's perf_analyzer against a server of its own
	@$(BIN)/python clients/perf.py $(PERF_ARGS)

load: $(VENV)/.dev  ## locust against a server of its own, on-time ratio printed
	@$(BIN)/python clients/load.py $(LOAD_ARGS)

soak: $(VENV)/.base  ## 1500 mixed requests to both embedded models; fails where memory grows or is left behind
	@$(BIN)/python clients/soak.py $(SOAK_ARGS)

bench-live: $(VENV)/.base  ## every policy on two real ranks, beside each other and beside the simulator
	@$(BIN)/tetriserve bench profiling/benchmarks/live-2ranks.yaml --fresh $(BENCH_ARGS)

bench-batching: $(VENV)/.base  ## FLUX and SD3 mixed, with batches and without, on the same traces
	@$(BIN)/python clients/batching.py $(BENCH_ARGS)

bench-overhead: $(VENV)/.base  ## what serving costs beside the bare model, gaps, time per decision
	@$(BIN)/tetriserve bench-overhead $(BENCH_ARGS)

lint: $(VENV)/.dev  ## style, types, layers, marks that a merge has left
	@! git grep -nE '^(<{7}|>{7})( |$$)'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the code in house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(VENV)/.dev  ## pure code, without any server
	$(BIN)/python -m pytest tests/unit -q -n 2

integration: $(VENV)/.dev  ## real servers and real ranks; what compares times comes last, with nothing beside it
	$(BIN)/python -m pytest tests/integration -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest tests/integration -m alone

test: $(VENV)/.dev  ## everything that CI runs
	@$(MAKE) --jobs=2 --output-sync=target --no-print-directory lint unit
	@$(MAKE) --no-print-directory integration

lock:  ## make requirements.lock anew (needs uv on PATH)
	@uv pip compile --universal --python-version 3.10 --extra load --extra dev --no-emit-index-url \
		--no-annotate --no-header --quiet pyproject.toml -o .lock.tmp
	@{ head -n 2 requirements.lock; cat .lock.tmp; } > .lock.new && mv .lock.new requirements.lock && rm .lock.tmp

clean:  ## remove the virtual environment and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build \
		demo-output load-output perf-output soak-output batching-output bench-output sweep-output report
	find clients profiling tests tetriserve_backend model_repository -name __pycache__ -prune -exec rm -rf {} +
