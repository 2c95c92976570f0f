PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo ui serve test test-slow coverage lint format docs docs-serve bench clean

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
	$(BIN)/embedding-assets build peps
	$(BIN)/embedding-assets search "My loop runs over two lists at once and silently drops the end of the longer one. Can I get an error instead?" -c peps -k 2
	$(BIN)/embedding-assets search "Somebody holds a project name on PyPI but has not touched it for years. May I take it over?" -c peps -k 2

ui: $(INSTALLED) ## Open Dagster's UI on http://127.0.0.1:3000 (or PORT=3001)
	$(BIN)/dg dev --host 127.0.0.1 --port $(or $(PORT),3000)

serve: $(INSTALLED) ## Answer for embeddings and searches on http://127.0.0.1:8080 (or PORT=8081)
	$(BIN)/embedding-assets serve --port $(or $(PORT),8080)

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(INSTALLED) ## Run the tests that take minutes: kills at every stage, backfills, a browser, the wheel, all pages
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

# The site's pages, with what they link to, in folders as here.
PAGES = README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs benchmarks/README.md benchmarks/results \
	sample_data/README.md dagster_home/dagster.yaml

docs: $(VENV)/.installed-docs ## Write the pages that are made from the code, and build the site
	$(BIN)/python -m docs.make_reference
	rm -rf build/pages && mkdir -p build/pages
	tar -cf - --exclude='*.py' --exclude=__pycache__ $(PAGES) | tar -xf - -C build/pages
	$(BIN)/zensical build --strict --clean

docs-serve: docs ## Show the site on http://127.0.0.1:8000 (or PORT=8001)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site $(or $(PORT),8000)

$(VENV)/.installed-docs: $(INSTALLED)
	@$(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev,docs]' || \
		$(PIP) --editable '.[dev,docs]'
	@touch $@

bench: $(INSTALLED) ## Run the benchmarks (BENCH=--quick: small and few rounds)
	@$(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev,benchmarks]' || \
		$(PIP) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks $(BENCH)

clean: ## Remove what was installed and built; `data/` and Dagster's history stay
	rm -rf $(VENV) build site .cache *.egg-info .pytest_cache .ruff_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
