# Everything happens in .venv; nothing else is needed but Python >= 3.11 and make.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test test-all lint verify clean

demo: .venv/demo  ## three papers' claims at desk scale, in minutes
	$(BIN)/paperworks run flexround relreps optimal --claims demo

test: .venv/test lint  ## the tests; what needs something that is not there is skipped by name
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: .venv/test lint  ## the heavier checks too
	$(BIN)/python -m pytest -n $(WORKERS)

lint: .venv/test
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

verify: .venv/demo  ## every study at desk scale, against the shipped evidence
	$(BIN)/paperworks verify

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first, alone: pip then takes this build for whatever else asks for torch.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

.venv/test: .venv/demo
	$(PIP) -e '.[language,graphs,hub,test]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache figures
