# Both commands do all their set-up on a fresh machine: virtual environment and installs included.
# PIP_ARGS goes to pip; on a machine without a GPU, a CPU-only torch saves gigabytes:
#   make demo PIP_ARGS="--extra-index-url <the CPU wheel index of your torch version>"

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo evidence stability recovery continual test lint types pytest slow clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo $(ARGS)

evidence: $(VENV)/.demo  ## which recipe should be the default: every recipe, several seeds, from one checkpoint
	$(BIN)/python -m examples.evidence $(ARGS)

stability: $(VENV)/.demo  ## what smoothing does to runs that diverge, against controls; one thread, so that it repeats
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.stability $(ARGS)

recovery: $(VENV)/.demo  ## what brings back a run that has diverged, against controls; one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.recovery $(ARGS)

continual: $(VENV)/.demo  ## what head-wise routing does to forgetting in sequences of tasks; one thread, so that it repeats
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.continual_moe $(ARGS)

test: lint types pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal $(ARGS)

slow: $(VENV)/.dev  ## what takes minutes: left out of `make test`
	$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: bench
bench: $(VENV)/.bench  ## a training step's time and memory against bf16 and other quantisers
	$(BIN)/python -m benchmarks.bench $(ARGS)

.PHONY: bench-optimizers
bench-optimizers: $(VENV)/.demo  ## Spectra against AdamW and Muon, the rate of each tuned; one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.optimizers $(ARGS)

.PHONY: gpu
gpu: $(VENV)/.dev  ## on a machine with an NVIDIA GPU: the kernels' numbers, then their times; see benchmarks/gpu.py
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python -m benchmarks.gpu $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
