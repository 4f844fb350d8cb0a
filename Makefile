# goqueue: `make help` lists the targets. Only python3 (3.11 or newer, with venv) and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Four processes keep the two cores of a small machine busy, since many tests wait; `make test WORKERS=8` for more cores.
WORKERS ?= 4
# Files with this word in their names run outside of a transaction.
APART  := $(wildcard migrations/V*NONTRANSACTIONAL*.sql)
# migrations.yml sets the lock_timeout, and an undo file drops on purpose.
SQUAWK_OFF := require-lock-timeout,require-statement-timeout
SQUAWK_OFF_UNDO := ban-drop-table,ban-drop-column,ban-drop-constraint,ban-drop-function,ban-drop-trigger,ban-drop-type,require-concurrent-index-deletion
ARGS    ?=
# Tests that need only a store: tests/elsewhere.py takes it to another schema, or its reads to a standby.
CONTRACT := $(patsubst %,tests/test_%.py,contract leases pauses hands repeating notifications unique_keys bulk_order prune_kept race)
# Environments, servers and logs of the targets that try other versions than those in .venv.
OTHERS  := .matrix
LOWEST  := $(OTHERS)/lowest
# What `make install` installs: a group of pyproject.toml, and optionally a file with exact versions.
GROUP   ?= dev
PINS    ?=
VERSIONS = $(BIN)/uv pip compile --quiet --no-header --upgrade --all-extras --python $(BIN)/python pyproject.toml

# Where the environment forbids compiled modules beside their sources, they are kept in pytest's cache (as
# tests/conftest.py does): the targets start hundreds of Python processes, and each would compile all its imports.
ifdef PYTHONDONTWRITEBYTECODE
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.pytest_cache/d/bytecode
endif

.DEFAULT_GOAL := help
.PHONY: help install build sbom test test-schema test-standby test-lowest test-matrix lint format typecheck audit coverage mutants run migrate bench chaos catalogue clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Make .venv with everything: the package, the embedded PostgreSQL, the tools

# uv, because its override keeps pgmigrate's psycopg2 (which compiles) out in favour of psycopg2-binary; pip has none.
$(STAMP): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("goqueue needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@echo "==> making $(VENV) (once; about half a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[migrate,otel,testing]' --group $(GROUP) $(addprefix --constraint ,$(PINS))
	@touch $@

build: $(STAMP) ## Build the wheel and the source archive into dist/
	@rm -rf dist
	$(BIN)/python -m build --installer uv

sbom: $(STAMP) ## List what an installation of the built wheel consists of: dist/goqueue.cdx.json (CycloneDX)
	@test -f dist/*.whl || { echo "dist/ has no wheel: run make build" >&2; exit 1; }
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OTHERS)/wheel
	$(BIN)/uv pip install --quiet --python $(OTHERS)/wheel/bin/python dist/*.whl
	$(BIN)/cyclonedx-py environment --output-reproducible --mc-type library --pyproject pyproject.toml --output-file dist/goqueue.cdx.json $(OTHERS)/wheel
	@rm -rf $(OTHERS)/wheel

test: $(STAMP) ## Run the tests on a real server (Docker, else the embedded one; GOQUEUE_TEST_DATABASE_URL names another)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-schema: $(STAMP) ## Run the tests of the contract under another schema name
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --schema jobs_2 $(CONTRACT) $(ARGS)

test-standby: $(STAMP) ## Run the contract's tests with lists, counts and statistics read on a standby that lags
	$(BIN)/python -m tests.standby -n $(WORKERS) --dist worksteal $(CONTRACT) $(ARGS)

test-lowest: $(STAMP) ## Run the tests with the lowest versions of the dependencies that pyproject.toml allows
	@mkdir -p $(OTHERS)
	$(VERSIONS) --resolution lowest-direct --output-file $(LOWEST).txt
	$(MAKE) test VENV=$(LOWEST) PINS=$(LOWEST).txt GROUP=tests

test-matrix: $(STAMP) ## Run the tests on each Python and PostgreSQL that is here; docs/matrix.md has the results (hours; it resumes)
	$(BIN)/python -m tools.matrix $(ARGS)

coverage: $(STAMP) ## Run the tests and show which lines of the package they reach
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered $(ARGS)

mutants: $(STAMP) ## Take the guards of the statements away one at a time: each time a test must fail (half an hour)
	$(BIN)/python -m tests.mutants $(ARGS)

lint: $(STAMP) ## Check style: Python (ruff), queries (sqlfluff), migrations (squawk), workflows (zizmor), imports, generated files, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint --disable-progress-bar sql
	$(BIN)/squawk --assume-in-transaction --exclude=$(SQUAWK_OFF) $(filter-out $(APART),$(wildcard migrations/V*.sql))
	$(if $(APART),$(BIN)/squawk --exclude=$(SQUAWK_OFF) $(APART))
	$(BIN)/squawk --assume-in-transaction --exclude=$(SQUAWK_OFF),$(SQUAWK_OFF_UNDO) migrations/undo/U*.sql
	$(BIN)/squawk --exclude=$(SQUAWK_OFF),require-concurrent-index-deletion migrations/online/C*.sql
	$(BIN)/actionlint -shellcheck=$(BIN)/shellcheck -pyflakes= .github/workflows/*.yml
	$(BIN)/zizmor --offline --strict-collection --no-progress --quiet .github
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.catalogue --check
	$(BIN)/python -m tools.documents

format: $(STAMP) ## Put Python and the queries into the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix --disable-progress-bar sql

typecheck: $(STAMP) ## Check the types (mypy, strict)
	$(BIN)/mypy

audit: $(STAMP) ## Look for known vulnerabilities of the dependencies, in their newest and lowest versions (asks PyPI)
	@mkdir -p $(OTHERS)
	$(VERSIONS) --output-file $(OTHERS)/newest.txt
	$(VERSIONS) --resolution lowest-direct --output-file $(LOWEST).txt
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement $(OTHERS)/newest.txt $(ARGS)
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement $(LOWEST).txt $(ARGS)

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
	rm -rf $(VENV) $(OTHERS) .bench .chaos .run dist .coverage .coverage.* htmlcov coverage.xml .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
