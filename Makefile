# `make serve` and `make test` need Python 3.11+, make and a package index; nothing else.

# Tests start processes by the hundred: let each find its modules compiled.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; `make PYTHON=…` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# A minute the first time: on a terminal pip shows how far it is, elsewhere only what fails.
PIP_INSTALL = if test -t 1; then how=--progress-bar=on; else how=--quiet; fi; \
	$(BIN)/python -m pip install --disable-pip-version-check $$how

# What docs/benchmarks.md describes; `make bench-NAME` runs one, `make bench-all` every one.
BENCHMARKS := throughput fairness dialects mixed crashes neighbour recovery footprint connections demo eviction decisions memory recorded relay

# Long forms of tests, which `make test` runs in short; `make structured ARGS="--seed 2"`.
LONG := greedy structured fuzz openapi scheduling mutants chaos agents

.PHONY: install serve test check suite frameworks bench bench-all $(BENCHMARKS:%=bench-%) $(LONG) chaos-sdk lm-eval clean

install: $(VENV)/.installed

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Bulkhead needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install one or run make PYTHON=/path/to/python3." >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(f"Bulkhead needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}." if sys.version_info < (3, 11) else 0)'
	@"$(PYTHON)" -m venv $(VENV) || { echo "Cannot create $(VENV): this Python has no venv module (on Debian: apt install python3-venv)." >&2; exit 1; }
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "Installing Bulkhead and what it needs into $(VENV)" >&2
	@$(PIP_INSTALL) --editable .
	@touch $@

# With the tools of `make test`, in one step where neither is there yet. What the tests never import
# need not be compiled.
$(VENV)/.tools: pyproject.toml | $(VENV)/.made
	@echo "Installing Bulkhead, what it needs and the tools of its tests into $(VENV)" >&2
	@$(PIP_INSTALL) --no-compile --editable '.[dev]'
	@touch $(VENV)/.installed $@

serve: install
	@$(BIN)/bulkhead serve $(ARGS)

check: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What tests/agents runs in short besides Bulkhead's own environment; without npm, or a package
# index, the tests that want it are skipped.
frameworks: | $(VENV)/.made
	@$(BIN)/python -m tests.agents.install frameworks vercel-ai openai-agents-js || true

# The suite's tests wait for processes as much as they compute: three files at a time on two cores.
# Threads of the linear algebra's own would wait for each other.
# Files with few tests, which are the slow ones, must not come last.
suite: $(VENV)/.tools frameworks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Each time one needs no word of the other's, and leaves a core idle.
test:
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.tools frameworks
	@$(MAKE) --no-print-directory --jobs=2 check suite

bench: bench-throughput

bench-all: $(BENCHMARKS:%=bench-%)

$(BENCHMARKS:%=bench-%): bench-%: $(VENV)/.tools
	$(BIN)/python -m tests.bench.$* $(ARGS)

$(LONG): $(VENV)/.tools
	$(BIN)/python -m tests.$(if $(filter chaos agents,$@),$@,property.$@) $(ARGS)

chaos-sdk: $(VENV)/.tools
	$(BIN)/python -m tests.chaos.sdk $(ARGS)

# lm-eval's figures through the server and mlx-lm's own, in an environment of its own.
lm-eval: $(VENV)/.tools
	$(BIN)/python -m tests.evaluation $(ARGS)

clean:
	rm -rf $(VENV) .venv-lm-eval .agents
