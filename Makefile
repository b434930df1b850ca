# `make demo` and `make test` are all a newcomer needs; both make .venv first.
# `make verify` is the quick check before a commit; `make fix` repairs what can be repaired.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Given to pytest besides: make test ARGS="tests/core -x"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test verify lint fix docs bench coverage-table guards lock

help:
	@echo "make demo             three nodes on this machine, their leader killed, and a verdict"
	@echo "make test             every test but the slow ones"
	@echo "make verify           lint, types, import contracts, twins, fast tests: before each commit"
	@echo "make fix              format, repair what ruff can repair, renew the generated twins"
	@echo "make docs             the pages, in docs/_build/html; a warning is an error"
	@echo "make bench            speed beside the raw limits of this machine; writes JSON"
	@echo "make coverage-table   which test shows which line of what must be shown"
	@echo "make guards           take out what keeps each promise: its tests must fail (ARGS: rooms or ids)"
	@echo "make lock             renew the locked development environment"

setup: $(READY)

# --require-hashes: what was tried is what is installed. The project itself is built without isolation, by the locked hatchling.
$(READY): requirements.lock pyproject.toml tools/prepare.sh
	@python=$$(sh tools/prepare.sh) && { [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(BIN)/tauraft demo

# Two workers: a 2-core machine has nothing for a third, and more of them starve the tests that start processes. They steal work: what
# starts processes mostly waits, the simulator computes, and dealt out beforehand the one would idle while the other goes on.
test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

verify: lint
	$(BIN)/pytest -n 2 --dist worksteal -q -m "not slow and not middle" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m tauraft.twin --check

fix: $(READY)
	$(BIN)/python -m tauraft.twin --write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(READY)
	$(BIN)/python -m benchmarks.run

coverage-table: $(READY)
	$(BIN)/python -m tools.promises table

guards: $(READY)
	$(BIN)/python -m tools.promises guards -j 2 $(ARGS)

# No index and no path in it: it holds on any machine, for every Python we support.
lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet -o requirements.lock
