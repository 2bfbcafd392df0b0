# make help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# uv installs the same in seconds; pip is always there.
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)

.DEFAULT_GOAL := help
.PHONY: help train test check lint types fast benchmark clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[speak,data,augment,generation,asr,page,dev]"
	@touch $@

train: $(VENV)/ready  ## set up, then run the main job
	PATH="$(abspath $(BIN)):$$PATH" accelerate launch train.py $(ARGS)

test: $(VENV)/ready  ## set up, then run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

fast: $(VENV)/ready  ## the tests that start no processes
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: $(VENV)/ready  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready  ## mypy on trainer/ and utils/
	$(BIN)/mypy

check: lint types fast  ## what a commit must pass

benchmark: $(VENV)/ready  ## ratios against named peers (some minutes)
	$(INSTALL) -e ".[benchmark]"
	$(BIN)/python -m benchmarks.trainer_overhead
	$(BIN)/python -m benchmarks.startup

clean:  ## remove the environment and caches, keep experiments
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
