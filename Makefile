# Everything happens in .venv; nothing else is needed but Python >= 3.11 and make.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test test-all lint docs bench verify clean

demo: .venv/demo  ## three papers' claims at desk scale, in minutes
	$(BIN)/paperworks run flexround relreps optimal --claims demo
	$(BIN)/paperworks report

test: .venv/test lint  ## the tests; what needs something that is not there is skipped by name
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: .venv/test lint  ## the heavier checks too
	$(BIN)/python -m pytest -n $(WORKERS)

lint: .venv/test
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/test  ## the guide, into build/guide
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/demo .venv-peers/ready  ## the engine's figures, and the parts beside their peers
	$(BIN)/python benchmarks/engine.py
	.venv-peers/bin/python benchmarks/parts.py

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
	$(PIP) -e '.[language,graphs,hub,cluster,postgres,docs,test]'
	touch $@

.venv-peers/ready: benchmarks/peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers.txt -c constraints.txt -e .
	touch $@

clean:
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .import_linter_cache figures report build
