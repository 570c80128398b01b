# Everything a fresh machine needs beside this is Python 3.11 or newer (with venv), and make.
#
#   make demo    install, prune a small classifier, show what it gave
#   make test    install, lint, types, imports, tests
#   make bench   the benchmarks (SECATEUR_ASSETS must name the folder with their data)
#   make clean   remove what the others made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pytest's workers: the tests are bound by the CPU.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))")
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/secateur demo

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/python benchmarks/frontier.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Secateur needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps say for which pyproject.toml and constraints.txt the installation was made.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Secateur into $(VENV) (some minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Secateur and its development tools into $(VENV) (some minutes the first time)"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/installed
