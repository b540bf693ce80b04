# Two targets are all that a newcomer needs: `make demo` and `make test`. Both install into .venv first.

.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash

# The VM driver of the demo: anka or tart.
DRIVER := anka
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

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
	@$(BIN)/python -m pytest -n 5 --dist worksteal

.PHONY: lint
lint: $(STAMP)  ## linters, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## let the formatter have its way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: package
package: $(STAMP)  ## wheel and sdist into dist/, each tried in an environment of its own
	@bash .ci/package

.PHONY: docs
docs: $(STAMP)  ## write the generated parts of the documentation and etc/ anew
	@$(BIN)/python tests/unit/test_readme.py
	@$(BIN)/python tests/unit/test_docs.py
	@PYTHONPATH=tests $(BIN)/python tests/unit/test_agent.py

.PHONY: bench
bench: $(STAMP)  ## the figures of docs/benchmarks.md, for this machine; OLD=CHECKOUT (with its .venv): memory and start beside that build
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/bench/bench.py $(if $(OLD),--old $(OLD))

.PHONY: crashpoints
crashpoints: $(STAMP)  ## kill worker and supervisor at every effect of a job; a table of what became of it
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/crashpoints/crashpoints.py

.PHONY: chaos
chaos: $(STAMP)  ## a fleet under random faults, judged: SEED=1 MINUTES=2 REPORT=docs/reliability.md JSON=FILE (all optional)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(RATE),--rate $(RATE)) $(if $(JOBS),--jobs $(JOBS)) $(if $(HOSTS),--hosts $(HOSTS)) $(if $(REPORT),--report $(REPORT)) $(if $(JSON),--json $(JSON))

.PHONY: clean
clean:  ## remove what make has made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
