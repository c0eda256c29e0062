# Needs Python 3.11 or newer (with venv), make and a package index; everything else goes into $(VENV).
#   make demo      a certified search for a T4 at 3.8 ms and where its milliseconds go; then a small search, made-up
#                  pictures, MINUTES of training on them, and how good the detector is on pictures it has not seen
#   make test      the whole test suite, slow tests included (installs torch)
#   make lint      formatting, lint and types
#   make docs      the documentation site, in build/site
#   make clean     remove what these targets made

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 8
BIN = $(VENV)/bin

# Installs are editable: a stamp then needs to follow pyproject.toml only, since sources and data are read in place.
INSTALL = $(BIN)/python -m pip install --quiet --editable

.DELETE_ON_ERROR:
.PHONY: demo test lint docs clean

demo: $(VENV)/.stamp-detector
	rm -rf runs/demo
	$(BIN)/maenas search --budget 3.8ms --device t4 --block res --out runs/demo/t4
	$(BIN)/maenas explain runs/demo/t4/structure.json --device t4
	$(BIN)/maenas search --budget 0.9ms --device t4 --block res --max-layers 17 --image-size 224 --num-classes 5 --out runs/demo/search
	$(BIN)/maenas sample-data runs/demo/data --images 800
	$(BIN)/maenas train runs/demo/search/structure.json --data runs/demo/data --recipe small-data --max-minutes $(MINUTES) --out runs/demo/train
	$(BIN)/maenas eval runs/demo/train/last.safetensors --data runs/demo/data --out runs/demo/eval

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q -n 2 tests

lint: $(VENV)/.stamp-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Strict: a dead link or an unknown name in a docstring is an error. The variable silences a notice about MkDocs 2.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo 'open build/site/index.html, or for its search: $(BIN)/python -m http.server -d build/site'

clean:
	rm -rf $(VENV) build dist maenas.egg-info runs/demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find maenas detector tests experiments -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maenas needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.stamp-detector: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) '.[detector]'
	touch $@

$(VENV)/.stamp-docs: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) '.[docs]'
	touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) '.[dev,all]'
	touch $@ $(VENV)/.stamp-detector $(VENV)/.stamp-docs
