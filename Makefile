# `make demo` and `make test` work on a bare machine with Python 3.11 or later and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO ?= runs/digits
# glibc keeps what a step on a CPU frees, for the next one; see docs/performance.md.
KEEP_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000

.PHONY: demo install test test-sizes test-wheel lint format clean browser compile-only

demo: install
	$(KEEP_MEMORY) $(BIN)/python -m flamingo_jax.train --config=configs/digits.py --workdir=$(DEMO)
	$(BIN)/python -m flamingo_jax.evaluate --workdir=$(DEMO)

install: .venv/installed

test: .venv/installed-for-tests browser
	$(BIN)/python -m pytest -n 2 --dist loadscope

# Minutes each: the planner's figures for models of their true sizes.
test-sizes: .venv/installed-for-tests compile-only
	$(BIN)/python -m pytest -m sizes tests/plan

# An installed package finds what a checkout has beside it.
test-wheel: .venv/installed-for-tests
	rm -rf build .venv/wheel
	$(PIP) wheel --no-deps --wheel-dir .venv/wheel .
	$(PIP) install --no-deps --target .venv/wheel/site .venv/wheel/*.whl
	cd .venv/wheel/site && PYTHONPATH=. ../../bin/python -c \
	  'from flamingo_jax.cli import find_config as find; print(find("of9b"), find("eval/openflamingo"))'

lint: .venv/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-for-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The web page and the reports are tested in a real browser: one that is there, the system's package,
# or Playwright's own.
browser: .venv/installed-for-tests
	@for name in chromium chromium-browser google-chrome; do \
	  if command -v $$name > /dev/null; then exit 0; fi; \
	done; \
	if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core > /dev/null; \
	else \
	  $(BIN)/playwright install chromium; \
	fi

# Compilers for machines that are not there. On the path of everything, they would slow every start.
compile-only: .venv/compile-only/installed

.venv/compile-only/installed: pyproject.toml | .venv/bin/python
	$(PIP) install --no-deps --upgrade --target .venv/compile-only libtpu==0.0.52 \
	  jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12==12.9.86
	touch $@

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/installed-for-tests: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[dev,torch,prepare,beam,serve,notebook]' lm-eval
	# In full, lmms-eval would bring a torchvision that does not fit the CPU's torch.
	$(PIP) install --constraint constraints.txt --no-deps lmms-eval accelerate loguru tenacity
	touch $@
