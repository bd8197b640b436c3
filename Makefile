# Everything that is done by hand here, by name. `make` alone lists it.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
ARGS ?=
STUDY ?=
MINUTES ?= 5
JOBS ?= 2
AGAIN ?=
SEED ?=
DATA ?= ../shared/data/train
DICOM ?= ../shared/data/dicom

.DEFAULT_GOAL := help
.PHONY: help setup services demo test chaos fuzz lint train pins clean bench-ingest bench-strangers bench-completeness \
  bench-throughput bench-limits bench-reading bench-guard

help: ## List what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Make .venv with .venv/bin/wetread; again only when the requirements changed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "wetread needs Python 3.11 or newer, and '$(PYTHON)' is not: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.compiled: $(VENV)/.installed # on all processors, which pip does on one; what cannot be compiled is never imported
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

demo: setup ## Push a synthetic chest film through the whole pipeline (ARGS=--exit ends by itself, STUDY=dir sends yours)
	$(VENV)/bin/wetread demo $(if $(STUDY),--study '$(STUDY)') $(ARGS)

services: ## Install what some tests talk to, where that is allowed: Orthanc, DCMTK, Redis, PostgreSQL
	@tests/services.sh

test: setup services $(VENV)/.compiled ## Run the tests (ARGS='-k spool' for some, AGAIN=1 tries failures twice); installs Orthanc, DCMTK, Redis ...
	$(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS) || \
	  { [ $$? -eq 1 ] && [ -n '$(AGAIN)' ] && $(VENV)/bin/python -m pytest --last-failed $(ARGS); }

chaos: setup ## Kill everything again and again while studies come in (MINUTES=5, SEED=n); says what was lost: nothing
	$(VENV)/bin/python -m tests.bench.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: setup ## Feed mutations to precheck, PDU stream, multipart parser and configuration (MINUTES=5); says how many it tried
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]' || \
	  echo "atheris cannot be installed here: mutations go by chance alone"
	$(VENV)/bin/python -m tests.fuzz --minutes $(MINUTES)

lint: setup ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

train: setup ## Train the shipped models again (DATA=dir with the training sets; hours on a CPU)
	$(VENV)/bin/python models/datalists.py --data '$(DATA)' --out build/datalists
	for bundle in hippocampus lung_fields chest_xray; do \
	  $(VENV)/bin/python -m monai.bundle run --config_file models/$$bundle/configs/train.json \
	    --bundle_root models/$$bundle --dataset_dir '$(DATA)' --datalist build/datalists/$$bundle.json || exit 1; done
	$(VENV)/bin/wetread models trust --shipped

pins: setup ## Pin the shipped models as they are now (models/trusted.toml), after any of their files has changed
	$(VENV)/bin/wetread models trust --shipped

bench-ingest: setup ## Measure how fast instances come in, beside DCMTK, Orthanc and pynetdicom (ARGS='--rounds 5 --json')
	$(VENV)/bin/python -m tests.bench.ingest $(ARGS)

bench-reading: setup ## Measure how fast a series is read, beside MONAI and highdicom as they come (ARGS='--rounds 3 --json')
	$(VENV)/bin/python -m tests.bench.reading $(ARGS)

bench-throughput: setup ## Measure how many studies a minute 1, 2 and 4 workers read and deliver (ARGS='--studies 60 --reading 0.5')
	$(VENV)/bin/python -m tests.bench.throughput $(ARGS)

bench-limits: setup ## Measure the listener's memory, a study of 5,000 instances, and a start with 100,000 (ARGS='--json')
	$(VENV)/bin/python -m tests.bench.limits $(ARGS)

bench-strangers: setup ## Measure what 500 half-open connections and 5 new ones a second cost a known peer (ARGS='--rounds 3 --json')
	$(VENV)/bin/python -m tests.bench.strangers $(ARGS)

bench-completeness: setup ## Measure how soon a study with full evidence is queued (ARGS='--studies 50 --json')
	$(VENV)/bin/python -m tests.bench.completeness $(ARGS)

bench-guard: setup ## Show the models images they were not made for, and their own (DATA=dir with the training sets, DICOM=dir)
	$(VENV)/bin/python -m tests.bench.guard --data '$(DATA)' --dicom '$(DICOM)' $(ARGS)

clean: ## Remove what was made here: .venv, caches, the demo's folder
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
