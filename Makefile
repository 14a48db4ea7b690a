# `make demo` and `make test` work on a bare machine with Python 3.11 or later and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO ?= runs/digits

.PHONY: demo install test lint format clean

demo: install
	$(BIN)/python -m flamingo_jax.train --config=configs/digits.py --workdir=$(DEMO)
	$(BIN)/python -m flamingo_jax.evaluate --workdir=$(DEMO)

install: .venv/installed

test: .venv/installed-for-tests
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: .venv/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-for-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/installed-for-tests: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[dev,torch,prepare,beam,serve,notebook]'
	touch $@
