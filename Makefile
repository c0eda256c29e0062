# Needs Python 3.11 or newer (with venv), make and a package index; everything else goes into $(VENV).
#   make demo      a certified search for a T4 at 3.8 ms, then where its milliseconds go
#   make test      the whole test suite, slow tests included (installs torch)
#   make lint      formatting, lint and types
#   make clean     remove what these targets made

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Installs are editable: a stamp then needs to follow pyproject.toml only, since sources and data are read in place.
INSTALL = $(BIN)/python -m pip install --quiet --editable

.DELETE_ON_ERROR:
.PHONY: demo test lint clean

demo: $(VENV)/.stamp-core
	rm -rf runs/demo
	$(BIN)/maenas search --budget 3.8ms --device t4 --block res --out runs/demo
	$(BIN)/maenas explain runs/demo/structure.json --device t4

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q -n 2 tests

lint: $(VENV)/.stamp-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build dist maenas.egg-info runs/demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find maenas detector tests experiments -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maenas needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.stamp-core: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) .
	touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) '.[dev,all]'
	touch $@ $(VENV)/.stamp-core
