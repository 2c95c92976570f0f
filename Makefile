PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo ui test test-slow coverage lint format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Install everything into .venv (the other targets do it when needed)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.10 to 3.13 is needed; for example: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV) (1 to 4 minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) uv
	@# torch by pip: where pip is set up to find a CPU build, it takes that one.
	@$(PIP) --no-compile torch
	@$(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]' || \
		$(PIP) --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Index 120 Python Enhancement Proposals and search in them
	@$(BIN)/python -m embedding_assets.cli.demo

ui: $(INSTALLED) ## Open Dagster's UI on http://127.0.0.1:3000
	$(BIN)/dg dev --host 127.0.0.1 --port 3000

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(INSTALLED) ## Run the tests that take minutes: a backfill cancelled, resumed and killed
	$(BIN)/python -m pytest -m slow

# A target of its own: tracing takes a third more processor time on Python 3.11.
coverage: $(INSTALLED) ## Run the tests and list the lines that none of them reaches
	$(BIN)/python -m pytest -n auto --dist worksteal --cov

lint: $(INSTALLED) ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Run the benchmarks (BENCH=--quick: small and few rounds)
	@$(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev,benchmarks]' || \
		$(PIP) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks $(BENCH)

clean: ## Remove what was installed and built; `data/` and Dagster's history stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
