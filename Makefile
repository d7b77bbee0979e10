# The tasks of this repository. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
EXTRAS := build,cpu,bench,dev

# what `make engines` and `make generate` work on
CHECKPOINT ?= $(OUT)/checkpoint
BUNDLE ?= $(OUT)/bundle
PROMPT ?= a red circle moving to the right

.PHONY: help setup demo engines generate check test lint types bench clean

help: ## List the tasks
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 14

setup: $(VENV)/.ready ## Make the virtual environment with everything the other tasks need

$(VENV)/.ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or say PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: setup ## Small checkpoint -> bundle -> mp4, on this machine's CPU
	$(BIN)/sana-rt demo --output $(OUT)/demo

engines: setup ## CHECKPOINT=dir -> bundle of graphs in BUNDLE=dir
	$(BIN)/sana-rt export $(CHECKPOINT) $(BUNDLE)

generate: setup ## BUNDLE=dir PROMPT="..." -> $(OUT)/video.mp4
	$(BIN)/sana-rt generate $(BUNDLE) "$(PROMPT)" --output $(OUT)/video.mp4

check: lint types test ## Lint, types and all tests

lint: setup ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## mypy, strict
	$(BIN)/mypy

test: setup ## All tests
	$(BIN)/pytest

bench: setup ## Seconds a denoising step against diffusers -> benchmarks/results
	$(BIN)/python -m sana_rt.benchmarks.denoise

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
