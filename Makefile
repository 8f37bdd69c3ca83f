# `make demo` and `make test` are the whole set-up. Needs Python 3.11-3.13, pip and make.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
RUN    := $(VENV)/bin/python
TORCH  := torch==2.13.0
DEMO   ?= demo-data
OUT    ?= demo-out

RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed

.PHONY: help demo test check bench accuracy lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(RUNTIME) ## install, make a small dataset, segment it, compare with its truth, write the reports
	$(RUN) -m demo $(DEMO)
	$(RUN) run.py $(DEMO) $(OUT) participant
	$(RUN) run.py $(DEMO) $(OUT) group
	$(RUN) -m demo.compare $(DEMO) $(OUT)
	@echo "Open in a browser: $(OUT)/group.html, and from there sub-01.html and sub-02.html"

test: $(DEV) ## install, run all tests
	$(VENV)/bin/pytest -n auto --maxprocesses 4

check: $(DEV) ## format, lint, types, layers, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(MAKE) test

bench: $(RUNTIME) ## time and peak memory, per stage
	$(RUN) -m benchmarks.speed

accuracy: $(RUNTIME) ## agreement with the truth of the real scans in ../shared/data
	$(RUN) -m benchmarks.accuracy

# torch first: which build it is (CPU, CUDA) is the index's choice, so it is not in the lock. --no-deps: the lock is
# complete, and leaves out deepbet's graphical interface (docs/decisions/0005-lock-without-torch.md).
define install
	$(RUN) -m pip install --disable-pip-version-check -q "$(TORCH)" -c $(1)
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps -r $(1)
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps --editable .
	touch $@
endef

$(RUN):
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): requirements.txt pyproject.toml | $(RUN)
	$(call install,requirements.txt)

$(DEV): requirements-dev.txt pyproject.toml | $(RUN)
	$(call install,requirements-dev.txt)
	touch $(RUNTIME)

COMPILE := pip-compile -q --strip-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	--no-emit-options --unsafe-package torch --unsafe-package setuptools \
	--unsafe-package customtkinter --unsafe-package darkdetect

lock: $(DEV) ## write requirements*.txt anew from pyproject.toml; UPGRADE=--upgrade for the newest versions
	$(RUN) -m pip install -q pip-tools
	$(VENV)/bin/$(COMPILE) $(UPGRADE) -o requirements.txt pyproject.toml
	$(VENV)/bin/$(COMPILE) $(UPGRADE) -c requirements.txt --extra dev -o requirements-dev.txt pyproject.toml
	sed -i '/^$$/,$$d' requirements.txt requirements-dev.txt

clean: ## remove the demo's data and output
	rm -rf $(DEMO) $(OUT)
