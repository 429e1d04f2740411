# libortho: `make demo` is the whole way, from a fresh machine to a verdict.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-cuda test-matrix test-vllm lint clean

PYTHON ?= python3
# The tested version. Any torch that is already in .venv is kept.
TORCH ?= torch==2.13.0
# Where pip should look for torch besides its own index, e.g. https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Test processes at once, each with one thread.
JOBS ?= 2
DEMO_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.libortho-installed
SOURCES := pyproject.toml $(wildcard setup.py) $(shell find src/libortho/csrc -type f 2>/dev/null)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: PYTHON=$(PYTHON)  TORCH=$(TORCH)  TORCH_INDEX=$(TORCH_INDEX)  JOBS=$(JOBS)"

install: $(INSTALLED) ## Make .venv with torch and libortho, native kernels built

demo: $(INSTALLED) ## Learn secrets, split the weights, judge alpha = 0; options in DEMO_ARGS
	@$(BIN)/libortho demo $(DEMO_ARGS)

test: lint ## Lint, then every test; options in PYTEST_ARGS
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-matrix: $(INSTALLED) ## Architectures × dtypes × features, and lm-eval; a dated record in records/matrix
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev,lm-eval]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p recipes.dated_record --record records/matrix \
	  tests-matrix $(PYTEST_ARGS)

test-vllm: ## Real vLLM on a CPU, in .venv-vllm; leaves a dated record in records/vllm
	$(PYTHON) tests-vllm/environment.py $(VLLM_VENV)
	PYTHONPATH=$(VLLM_VENV)/plugin:src OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -q \
	  -p recipes.dated_record --record records/vllm --timeout 600 tests-vllm $(PYTEST_ARGS)

test-cuda: $(INSTALLED) ## The CUDA kernels on the GPU at hand; leaves a dated record in records/cuda
	$(BIN)/python -m pytest -q -p recipes.dated_record --record records/cuda --on cuda \
	  tests/ops/test_cuda.py $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove build products and caches; .venv stays and is installed into again
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf src/*.egg-info $(INSTALLED)
	find src tests recipes -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "libortho needs Python 3.11 or newer, found %s: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(SOURCES) | $(BIN)/python
	@if ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  $(BIN)/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"; \
	fi
	$(BIN)/python -m pip install -q "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@
