# `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The distribution's interpreter: bcc exists only for that one. Not whatever python3 comes first in PATH.
export PYTHON ?= /usr/bin/python3
export VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
SUITES := $(wildcard tests/unit tests/property tests/golden tests/host tests/integration)

.PHONY: help setup demo test shapes kernels lint check bench orders fuzz format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-bpf ## install what is missing (as root) and make .venv

$(VENV)/.ready-python: pyproject.toml .ci/setup.sh
	.ci/setup.sh python
	@touch $@

$(VENV)/.ready-bpf: pyproject.toml .ci/setup.sh
	.ci/setup.sh bpf
	@touch $(VENV)/.ready-python $@

demo: $(VENV)/.ready-bpf ## build a server with the bug, attach to it, prove the stale delivery before it dies (root)
	$(BIN)/afterfree demo

test: $(VENV)/.ready-bpf ## unit, property and integration tests on real BPF (root)
	$(PYTEST) -n 2 --dist worksteal -m 'not bpf' --durations=10 $(SUITES)
	$(BIN)/python -m tests.again -m bpf --durations=25 $(SUITES)

shapes: $(VENV)/.ready-bpf ## watch every small program of tests/shapes, correct and broken ones, at -O0 and -O2 (root)
	$(PYTEST) -q -m bpf tests/integration/test_shapes.py

kernels: $(VENV)/.ready-bpf ## doctor, shapes, demo and ground truth on Debian's 6.1 and 6.12, also preempt=full and rt, under qemu (root; hours)
	.ci/setup.sh kernels
	$(BIN)/python -m tests.kernels $(KERNELS)

lint: $(VENV)/.ready-python ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

check: lint ## lint, then the unit, property and host tests: no root, no bcc
	$(PYTEST) -q -n 2 --dist worksteal -m 'not bpf' $(wildcard tests/unit tests/property tests/host)

bench: $(VENV)/.ready-bpf ## what watching costs, and resolving beside other tools, as ratios (root)
	$(BIN)/python -m tests.bench

orders: $(VENV)/.ready-python ## the kernel side's C on this machine, in every order of small concurrent programs: no root
	$(BIN)/python -m tests.host --deep

fuzz: $(VENV)/.ready-python ## 20,000 damaged files over everything that reads untrusted ones: no root
	$(BIN)/python -m tests.fuzz --count 20000

format: $(VENV)/.ready-python ## let ruff rewrite the layout
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf tests/targets/.build tests/targets/.zig-cache tests/targets/zig-out
