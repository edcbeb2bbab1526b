# Each target makes its own .venv and installs what it needs, once: the stamps depend on pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
JOBS ?= 2

.PHONY: help demo demo-mlp test lint format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.installed-base ## train the MNIST convnet for one epoch; print accuracy and times
	$(BIN)/python -m examples.conv_mnist

demo-mlp: .venv/.installed-base ## train the MNIST MLP for 1,000 steps
	$(BIN)/python -m examples.mlp_mnist

test: .venv/.installed-dev ## run all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q

lint: .venv/.installed-dev ## style, types and the rules of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/house

format: .venv/.installed-dev ## rewrite the Python files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed-bench ## time the CPU workloads beside torch and JAX
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.cpu

clean: ## remove the environment and everything built
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed-base: pyproject.toml | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ .venv/.installed-base

.venv/.installed-bench: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[bench]'
	touch $@ .venv/.installed-base
