# `make demo` and `make test` are the whole set-up. Needs Python 3.11-3.13, pip and make; on Debian and Ubuntu the
# package python3-venv, too.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
RUN    := $(VENV)/bin/python
TOOLS   := .tools
VARIANT ?= cpu
# Not the environment's, where OUT may be any folder of the user's; `make demo OUT=...` counts.
DEMO   := demo-data
OUT    := demo-out

RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
HELPERS := $(TOOLS)/.installed

.PHONY: help demo test check bench accuracy lock audit image sif clean

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

# Nothing whose hash is not in the locks. --no-deps: they are complete, and leave out deepbet's graphical interface.
# torch is the CPU build where an index has it, asked for by its full version: pip prefers a file whose index states its
# hash to one of a local folder, CPU or not. TORCH=unchecked: for CPU builds whose hash the lock does not know
# (docs/decisions/0005-lock-without-torch.md).
PIP := $(RUN) -m pip install --disable-pip-version-check -q --no-deps
define install
	@sed 's/^torch==[0-9.]*/&+cpu/' requirements-torch.txt > $(VENV)/torch-cpu.txt
	$(if $(filter unchecked,$(TORCH)),$(PIP) "$$(grep -o '^torch==[0-9.+cpu]*' $(VENV)/torch-cpu.txt)", \
		$(PIP) --require-hashes -r $(VENV)/torch-cpu.txt 2>/dev/null || $(PIP) --require-hashes -r requirements-torch.txt)
	@if [ "$$(uname)" = Linux ] && $(RUN) -m pip show torch | grep -i '^Requires:.*\(cuda\|nvidia\)' > /dev/null; then \
		echo 'No CPU build of torch at hand whose hash is locked: its CUDA libraries too (several GB). To do without: PIP_EXTRA_INDEX_URL=ADDRESS, and TORCH=unchecked unless this is Python 3.11 on x86-64 (docs/usage.md)'; \
		$(PIP) --require-hashes -r requirements-cuda.txt; fi
	$(PIP) --require-hashes -r $(1)
	$(PIP) --editable .
	touch $@
endef

$(RUN):
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): requirements.txt requirements-torch.txt pyproject.toml | $(RUN)
	$(call install,requirements.txt)

$(DEV): requirements-dev.txt requirements-torch.txt pyproject.toml | $(RUN)
	$(call install,requirements-dev.txt)
	touch $(RUNTIME)

lock: $(HELPERS) ## write requirements*.txt anew from pyproject.toml; UPGRADE=--upgrade for the newest versions
	PATH="$(abspath $(TOOLS)/bin):$$PATH" $(TOOLS)/bin/python scripts/lock.py $(UPGRADE)

audit: $(HELPERS) ## no pickle in the app, and known vulnerabilities of what the locks hold (asks the network)
	$(TOOLS)/bin/python scripts/audit.py
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip -r requirements.txt -r requirements-torch.txt

# Apart from the app's environment, which holds what is locked and nothing else.
$(HELPERS):
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check -q uv pip-audit
	touch $@

image: ## build the Docker image (buildah where there is no engine), check its size and speed; VARIANT=cuda
	$(PYTHON) scripts/images.py build --variant $(VARIANT)

sif: ## make the Apptainer image from the Docker image for CPUs: IMAGE_STORE/sif/bidsapp.sif
	$(PYTHON) scripts/images.py sif

clean: ## remove demo-data and demo-out, what `make demo` made
	rm -rf demo-data demo-out
