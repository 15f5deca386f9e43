# LongRec's front door. `make demo` and `make test` need nothing but Python 3.11 or newer: each sets up what it uses.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
TORCH  := 2.13.0
FAST   := -m "not slow"
CORES  ?= 2

# Idle OpenMP threads sleep instead of spinning: on a shared machine that is worth up to 25 times.
export OMP_WAIT_POLICY = PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo test check slow golden docs site schemas bench setup

help:
	@echo "make demo     get MovieLens-1M, train two models, compare, export, serve, rank (minutes)"
	@echo "make test     the fast test suite"
	@echo "make check    formatter, linter, type checker, architecture test"
	@echo "make slow     the tests that take minutes"
	@echo "make golden   did a reference number move?"
	@echo "make docs     write the pages of the models and the reference anew"
	@echo "make site     build the documentation site into build/site"
	@echo "make schemas  write the JSON schema of the models' settings anew, which check reads"
	@echo "make bench    training against peers, data preparation, serving latency (needs an hour)"

demo: setup
	@$(VENV)/bin/longrec demo

test: setup
	@$(PY) -m pytest $(FAST) -n $(CORES)

check: setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pytest tests/test_architecture.py

slow: setup
	@$(PY) -m pytest -m slow

golden: setup
	@$(PY) -m pytest tests/golden

docs: setup
	@$(PY) docs/make_models.py
	@$(PY) docs/make_easyrec.py
	@$(PY) docs/make_reference.py

# Tests do without Sphinx, so the extra is installed here. -W: a dead link or a page outside the navigation is an error.
site: setup
	@$(PY) -c "import furo, myst_parser, sphinx_copybutton" 2>/dev/null \
	  || $(PY) -m pip install -qq -c constraints.txt -e ".[docs]"
	@$(PY) -m sphinx -W -n --keep-going -q docs build/site
	@echo "open build/site/index.html"

schemas: setup
	@$(PY) -m longrec.models.core.schema_writer

bench: setup
	@$(PY) bench/din_training.py
	@$(PY) bench/prepare_20m.py
	@$(PY) bench/serving_latency.py

# The environment. `.venv/.stamp` names what was installed; while it agrees, set-up costs nothing.
# `.venv/.unfinished` is there while pip works: whoever finds it starts over from an empty folder.
# torch goes first and pinned: asked for later, pip could choose another build or a newer release.
setup:
	@want="$$(cat pyproject.toml constraints.txt | cksum) $(TORCH) $(CURDIR)"; \
	if [ -f $(VENV)/.stamp ] && [ "$$(cat $(VENV)/.stamp)" = "$$want" ] && [ -x $(PY) ]; then exit 0; fi; \
	set -e; \
	if [ -e $(VENV) ] && { [ -f $(VENV)/.unfinished ] || ! $(PY) -c "import pip" 2>/dev/null \
	    || { [ -f $(VENV)/.stamp ] && ! grep -qF " $(CURDIR)" $(VENV)/.stamp; }; }; then \
	  echo "set-up: $(VENV) is half made or was moved; starting over"; rm -rf $(VENV); fi; \
	if [ ! -e $(VENV) ]; then \
	  $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	    || { echo "set-up: $(PYTHON) is older than 3.11; give another, as in: make PYTHON=python3.11 test"; exit 2; }; \
	  echo "set-up: making $(VENV)"; mkdir $(VENV); touch $(VENV)/.unfinished; $(PYTHON) -m venv $(VENV); fi; \
	touch $(VENV)/.unfinished; rm -f $(VENV)/.stamp; \
	echo "set-up: torch $(TORCH) (1 of 2, most of a minute)"; $(PY) -m pip install -qq torch==$(TORCH); \
	echo "set-up: longrec and what it needs (2 of 2, half a minute)"; $(PY) -m pip install -qq -c constraints.txt -e ".[dev]"; \
	echo "$$want" > $(VENV)/.stamp; rm $(VENV)/.unfinished
