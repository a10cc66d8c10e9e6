# Everything runs in .venv, which `make` sets up once from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEACHERS := .cache/teachers

.PHONY: help setup teachers test slow quality format demo bench coverage clean

help:
	@echo "make test     set up what is needed and run the fast tests"
	@echo "make slow     run the long tests too"
	@echo "make demo     halve a sentence encoder in a few minutes and show what came out"
	@echo "make bench    measure training steps beside the bare student's; ARGS=--small for a quick look"
	@echo "make coverage try every family of transformers and write docs/coverage.md; goes on where it stopped"
	@echo "make quality  lint, format and types"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

teachers: $(TEACHERS)/reaction-bert $(TEACHERS)/minilm

$(TEACHERS)/%: | $(READY)
	$(BIN)/python examples/fetch_teacher.py $* $(TEACHERS)

test: setup teachers
	$(BIN)/python -m pytest

slow: setup teachers $(TEACHERS)/smollm2
	$(BIN)/python -m pytest -m "slow or not slow"

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup
	$(BIN)/python examples/demo.py

bench: setup
	$(BIN)/python benchmarks/speed $(ARGS)

coverage: setup
	$(BIN)/python benchmarks/architectures $(ARGS)

clean:
	rm -rf $(VENV) .cache demo
