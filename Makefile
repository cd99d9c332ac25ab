# make venv | test | lint | docs | demo | container-test | crash-test | slurm-test | clean
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: venv test lint docs demo container-test crash-test slurm-test clean

venv: $(READY)

# PyTorch goes first and pinned: left to pip, its newest build would come with CUDA's libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS)

lint: venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# The documentation site; the tests build it too, without a network.
docs: venv
	$(BIN)/python -m mkdocs build --strict # --quiet would hide its warnings from --strict

demo: venv
	$(BIN)/python -m bmex_bids.evaluation.demo

crash-test: venv
	OMP_NUM_THREADS=1 $(BIN)/python scripts/crash-test.py --kills 100
	OMP_NUM_THREADS=1 $(BIN)/python scripts/writers-test.py --writers 20 --same 4

slurm-test: venv
	OMP_NUM_THREADS=1 scripts/slurm-test.sh

container-test:
	scripts/container-test.sh

clean:
	rm -rf build dist demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
