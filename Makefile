# make demo    read a long document with the built-in model and answer a question about it
# make test    the whole test suite, WORKERS files at a time (one a core); GPU tests skip with a
#              reason where there is no GPU
# make check   ruff, ruff format --check, mypy --strict
# make docs    writes docs/cli.md from the commands' own help, docs/families.md from the families
# Each makes .venv when it is missing: the demo with the base install, the others with all extras.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Processes that run tests; with 0, one and no other. `python -m pytest` is always one.
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)

# Checkpoints and texts that some tests read; they skip with a reason where the folder is absent.
ifneq ($(wildcard ../shared/data),)
export LONGSPAN_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test check format docs clean

demo: $(VENV)/base.stamp
	$(BIN)/longspan demo

test: $(VENV)/all.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/all.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/all.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/all.stamp
	$(BIN)/python -m typer longspan.cli utils docs --name longspan --output docs/cli.md
	$(BIN)/python docs/families.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/all.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[all]'
	touch $@ $(VENV)/base.stamp
