# Two targets are all that a newcomer needs: `make demo` and `make test`. Both install into .venv first.

.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash

# The VM driver of the demo: anka or tart.
DRIVER := anka
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src plugins tests docs/examples

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

$(STAMP): pyproject.toml .ci/make-venv
	@bash .ci/make-venv $(VENV)
	@touch $@

.PHONY: install
install: $(STAMP)  ## the program and its development tools, into .venv

.PHONY: demo
demo: $(STAMP)  ## eight jobs, two services, emulated Anka (DRIVER=tart: Tart) and GitHub: the real program at work
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/demo/demo.py $(DRIVER)

.PHONY: test
test: $(STAMP)  ## every test, a real Redis included
	@$(BIN)/python -m pytest -n 4 --dist worksteal

.PHONY: lint
lint: $(STAMP)  ## linters, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## let the formatter have its way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP)  ## the figures of docs/benchmarks.md, for this machine
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/bench/bench.py

.PHONY: clean
clean:  ## remove what make has made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
