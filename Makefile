# `make demo` and `make test` are all that a new machine needs: Python 3.11 or later with pip, and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CHAOS := tests/running tests/recording tests/clusters tests/test_cli.py

.DEFAULT_GOAL := help
.PHONY: help install demo test slow lint chaos clusters gpu papers bench lock

help: ## Show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(INSTALLED) ## Create .venv and install everything that the lock names

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m compileall -q harness tasks methods
	@touch $@

demo: install ## Run the quickstart grid: five tasks, one to two minutes
	$(BIN)/harness run grids/quickstart.yaml

test: install lint ## Lint, type-check and run the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: install ## The tests that take longer
	$(BIN)/python -m pytest -n 2 -m "slow and not chaos and not gpu"

lint: install ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: install ## Faults for real: kills, hangs, memory, a tracking server that goes away
	$(BIN)/python -m pytest -n 3 -m chaos --dist worksteal --durations 25 $(CHAOS)

clusters: install ## Of the slow ones, grids as they are run: several ranks and nodes, submit, Slurm, doctor
	$(BIN)/python -m pytest -n 2 -m "slow and not chaos" tests/running/test_four_ways.py tests/running/test_ranks.py \
		tests/running/test_packing.py tests/running/test_screening.py tests/running/test_grids.py \
		tests/running/test_doctor.py tests/running/test_metrics.py tests/running/test_stalling.py \
		tests/running/test_submission.py tests/training/test_ranks.py tests/clusters

gpu: install ## What a GPU alone can show, on this machine's
	$(BIN)/python -m pytest -n 4 -m gpu tests/test_gpu.py

papers: install ## Run what is not done of the ten papers' proxies, and write docs/papers.md and docs/papers/
	@failed=""; for grid in grids/proxies/*.yaml; do $(BIN)/harness run $$grid || failed="$$failed $$grid"; done; \
		$(BIN)/python docs/papers.py && test -z "$$failed" || { echo "not all went well:$$failed"; exit 1; }

bench: install ## Measure the overhead side by side
	$(BIN)/python benchmarks/overhead.py

lock: ## Resolve the lock anew: names, versions and hashes
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --generate-hashes --no-annotate --no-header \
		--upgrade -o requirements.lock
