# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test test-fast test-cluster docs lint format clean

setup: $(VENV)/.ready

# torch goes first and pinned: left to itself, pip would fetch a CUDA build of several gigabytes.
$(VENV)/.ready: constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,docs]'
	touch $@

# A second one replaces the first only if it is told to: make quickstart ARGS=--overwrite
quickstart: setup
	$(BIN)/megaokd quickstart $(ARGS)

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=15

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'

# Slurm, ssh and broken links between hosts made of namespaces: root, Debian; installs packages.
test-cluster: setup
	tests/cluster/install.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=15 tests/cluster

# The site, in build/site: open build/site/index.html. A link that leads nowhere is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch_scripts/*.sh launch_scripts/*.sbatch tests/cluster/*.sh

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info runs
