# Two commands matter: `make demo` and `make test`. Each sets up everything it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-slow test-all lint types resolve check notebooks site lock release clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.ready ## Make the virtual environment

demo: setup ## Train a small sparse model, extract the quote circuit, write out/demo/
	$(BIN)/circuits demo

test: setup ## Run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not notebook and not slow and not browser"

test-slow: setup ## Run the tests that train, attack, fuzz, compile or open a browser at length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "(slow or browser) and not notebook"

test-all: test test-slow ## Run the whole suite, without the notebooks

notebooks: setup ## Run every notebook from the top
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m notebook

site: setup ## Build the documentation's site into out/site, with every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f docs/theme/mkdocs.yml

lint: setup ## Check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check the types of the package
	$(BIN)/mypy

resolve: setup ## Check that the pinned versions install from the plain package index, on every supported Python
	.ci/resolve $(BIN)

lock: setup ## Write .ci/lock.txt: the pinned versions with the hashes of their files
	.ci/lock $(BIN)

release: ## Build the wheel, and run the demo from it in a fresh environment
	.ci/release $(PYTHON)

check: resolve test-all lint types notebooks site ## Everything that CI runs

clean: ## Remove the environment and all output
	rm -rf $(VENV) out .pytest_cache .ruff_cache .mypy_cache
