# `make serve` and `make test` need Python 3.11+, make and a package index; nothing else.

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; `make PYTHON=…` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# What docs/benchmarks.md describes; `make bench-NAME` runs one, `make bench-all` every one.
BENCHMARKS := throughput mixed crashes footprint connections demo eviction decisions memory

# Long forms of tests, which `make test` runs in short; `make structured ARGS="--seed 2"`.
LONG := greedy structured fuzz scheduling planted

.PHONY: install serve test check bench bench-all $(BENCHMARKS:%=bench-%) $(LONG) clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Bulkhead needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install one or run make PYTHON=/path/to/python3." >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(f"Bulkhead needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}." if sys.version_info < (3, 11) else 0)'
	@"$(PYTHON)" -m venv $(VENV) || { echo "Cannot create $(VENV): this Python has no venv module (on Debian: apt install python3-venv)." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

serve: install
	@$(BIN)/bulkhead serve $(ARGS)

check: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

bench: bench-throughput

bench-all: $(BENCHMARKS:%=bench-%)

$(BENCHMARKS:%=bench-%): bench-%: $(VENV)/.tools
	$(BIN)/python -m tests.bench.$* $(ARGS)

$(LONG): $(VENV)/.tools
	$(BIN)/python -m tests.$@ $(ARGS)

clean:
	rm -rf $(VENV)
