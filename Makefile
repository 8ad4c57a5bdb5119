# Two commands set everything up on a machine with Python 3.11 or newer: `make demo`, `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One thread a process: the suite and the sweeps run several processes at once.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test slow lint docs gpu explorer clean

help:
	@echo "make demo    environment, the quick study into results/demo/, its report"
	@echo "make test    environment, linters, the quick tests"
	@echo "make slow    the slow tests: whole studies, kills, simulations, every level, notebooks"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the documentation as a site, into site/"
	@echo "make explorer  the program of a report's page, from analysis/explorer/js (needs Node and npm)"
	@echo "make gpu     on a machine with a GPU: its tests, its benchmarks, their table"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/ablate sweep study=quick out=results/demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# Uses a torch that is there (a CUDA build): set PYTHON to its interpreter, with ablate[gpu] installed.
gpu:
	$(PYTHON) -m pytest -q -m gpu
	$(PYTHON) -m benchmarks.gpu --out results/gpu.jsonl
	$(PYTHON) -m benchmarks.gpu.table results/gpu.jsonl

# The result is kept in the repository: nothing else here needs Node.
explorer:
	cd analysis/explorer/js && npm ci --no-audit --no-fund && node build.mjs

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
