# on-api. `make run` and `make test` are all a newcomer needs; `make help` lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
POETRY_VERSION := 2.5.1
MIRROR_PLUGIN_VERSION := 0.6.5
VENV := .venv
BIN := $(VENV)/bin
POETRY_VENV := .tools/poetry
INSTALLED := $(VENV)/.installed

# PORT, RPC_PORT and GATEWAY_PORT move the ports; everything else is in .env or the environment.
ifdef PORT
export ON_API_PORT := $(PORT)
endif
ifdef RPC_PORT
export ON_API_NODE__RPC_PORT := $(RPC_PORT)
endif
ifdef GATEWAY_PORT
export ON_API_NODE__GATEWAY_PORT := $(GATEWAY_PORT)
endif

# More workers than cores: a third of the time is spent waiting for time-outs, leases and restarts.
WORKERS := -n 3 --dist worksteal
ORDINARY := not soak and not clients and not browser and not packaging
TESTS := on_api/tests
# What goes on beside requests: commands as programs, the worker's jobs, what must not grow.
JOBS := $(addprefix $(TESTS)/,cli worker scale)
# Everything that a fast lane may answer or take in.
HTTP_SUITES := $(addprefix $(TESTS)/,public server v1/test_files.py v1/test_inputs.py v1/test_private_files.py v1/test_traffic.py)

# Compiled modules are what makes a start take two seconds instead of five.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test check suite jobs lanes clients soak bench bench-compare migrate openapi release clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 24

run: $(INSTALLED) ## Install what is missing, start the IPFS node and the API (PORT=, RPC_PORT=, GATEWAY_PORT=)
	@$(BIN)/on-api init
	@exec $(BIN)/on-api serve

test: check suite jobs lanes clients ## Run all checks and tests, with a real Kubo, on SQLite and on PostgreSQL

suite: $(INSTALLED) ## Run the unit and HTTP tests (part of `make test`)
	@$(BIN)/on-api node install
	$(BIN)/pytest $(WORKERS) -m "$(ORDINARY)" $(addprefix --ignore=,$(JOBS)) $(PYTEST_ARGS)

lanes: $(INSTALLED) ## Run the HTTP tests again without fast lanes (part of `make test`)
	@$(BIN)/on-api node install
	$(BIN)/pytest $(WORKERS) -m "$(ORDINARY)" --fast-lanes off $(HTTP_SUITES) $(PYTEST_ARGS)

jobs: $(INSTALLED) ## Run the tests of background jobs and of the command line (part of `make test`)
	@$(BIN)/on-api node install
	$(BIN)/pytest $(WORKERS) -m "$(ORDINARY)" $(JOBS) $(PYTEST_ARGS)

clients: $(INSTALLED) ## Run the tests with third-party clients, a browser and the installed wheel (part of `make test`)
	@$(BIN)/on-api node install
	$(BIN)/pytest $(WORKERS) -m "not soak and (clients or browser or packaging)" $(PYTEST_ARGS)

check: $(INSTALLED) ## Run the linter, type checker, import rules and migration check (part of `make test`)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@home=$$(mktemp -d) && trap 'rm -rf $$home' EXIT && export ON_API_HOME=$$home ON_API_DATABASE_URL= \
		&& $(BIN)/alembic upgrade head && $(BIN)/alembic check

soak: $(INSTALLED) ## Run the long tests under load and with faults (takes minutes)
	@$(BIN)/on-api node install
	$(BIN)/pytest -m soak --timeout 3600 $(PYTEST_ARGS)

bench: $(INSTALLED) ## Measure on-api against its Kubo node, used directly (BENCH_ARGS="--quick", names of scenarios …)
	@$(BIN)/on-api node install
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-compare: $(INSTALLED) ## Compare with benchmarks/baseline.json (RUN=bench.json; by default, a new run)
	@test -n "$(RUN)" || $(MAKE) --no-print-directory bench
	@$(BIN)/python -m benchmarks.compare $(or $(RUN),bench.json)

migrate: $(INSTALLED) ## Migrate the configured database to the newest revision
	$(BIN)/alembic upgrade head

openapi: $(INSTALLED) ## Write openapi/v1.json and openapi/v2.json
	$(BIN)/on-api openapi

# With CI=true a test that finds no package index, or no curl, fails instead of being skipped.
release: $(INSTALLED) ## Check tag, version and changelog, build dist/, and test the wheel in a clean environment
	@$(BIN)/python .ci/release
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	@$(BIN)/on-api node install
	CI=true $(BIN)/pytest -m packaging --dist-folder dist $(TESTS)/packaging
	@echo "on-api: dist/ is ready: $$(cd dist && echo *)"

install: $(INSTALLED) ## Create .venv with the exact versions in poetry.lock

clean: ## Remove what `make install` created; data in .on-api is kept
	rm -rf $(VENV) .tools

# Poetry lives in a venv of its own, so that it neither meets our packages nor must be had before.
# Its `sync` needs the index's JSON API, which many mirrors lack: the plugin does with the simple index that pip uses.
$(INSTALLED): poetry.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "on-api needs Python 3.11 or newer; name it with PYTHON=python3.12" >&2; exit 1; }
	@echo "on-api: installing Poetry $(POETRY_VERSION) into $(POETRY_VENV) ..."
	@test -x $(POETRY_VENV)/bin/poetry || { rm -rf $(POETRY_VENV) && $(PYTHON) -m venv $(POETRY_VENV); }
	@$(POETRY_VENV)/bin/pip install --quiet --disable-pip-version-check \
		poetry==$(POETRY_VERSION) poetry-plugin-pypi-mirror==$(MIRROR_PLUGIN_VERSION)
	@echo "on-api: installing the packages in poetry.lock into $(VENV) (about a minute) ..."
	@test -x $(BIN)/python || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@export POETRY_VIRTUALENVS_IN_PROJECT=true POETRY_NO_INTERACTION=1 VIRTUAL_ENV="$(CURDIR)/$(VENV)"; \
		unset PYTHONHOME PYTHONPATH; \
		if [ -z "$$POETRY_PYPI_MIRROR_URL" ]; then \
			POETRY_PYPI_MIRROR_URL=$$($(POETRY_VENV)/bin/pip config get global.index-url 2>/dev/null \
				|| echo "$${PIP_INDEX_URL:-$$($(POETRY_VENV)/bin/python -c 'from pip._internal.models.index import PyPI; print(PyPI.simple_url)')}"); \
			export POETRY_PYPI_MIRROR_URL; \
		fi; \
		log=$$(mktemp) && trap 'rm -f $$log' EXIT; \
		$(POETRY_VENV)/bin/poetry sync --no-ansi >$$log 2>&1 \
			|| { cat $$log >&2; echo "on-api: the installation failed; see Poetry's output above" >&2; exit 1; }; \
		echo "on-api: $$(grep -c 'Installing\|Updating' $$log) packages installed"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib on_api >/dev/null || true
	@touch $@
