# Everything a fresh machine needs is python3 (3.11 or later) with pip: the environment makes itself.
.DEFAULT_GOAL := help
.PHONY: help serve demo test lint check format bench proofs schema openapi papers events lock clean

PYTHON ?= python3
TEST_PROCESSES ?= 3
BIN := .venv/bin
READY := .venv/ready
# Where this is set, every process would compile every module anew: a start would take twice as long.
unexport PYTHONDONTWRITEBYTECODE

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installed again only when what is to be installed has changed. Modules are compiled when they are first imported,
# not all at once: a third of the time, and most of them never are.
$(READY): requirements-dev.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -r requirements-dev.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

serve: $(READY) ## start the server on http://127.0.0.1:8003 (DATABASE_URL and REDIS_URL unset: embedded ones)
	@exec $(BIN)/saas-litellm serve

demo: $(READY) ## play the whole story against a freshly started server and print it
	@exec $(BIN)/saas-litellm demo

# Tests wait more than they compute: one process more than a small machine has cores. Each has servers of its own.
test: $(READY) ## run the test suite (TEST_DATABASE_URL and REDIS_URL set: on those servers)
	@$(BIN)/pytest -m "not proof" --numprocesses $(TEST_PROCESSES) --dist worksteal

lint: $(READY) ## check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check: lint test ## lint, then test: what to run before a commit

format: $(READY) ## format the code and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## run the benchmarks of docs/benchmarks.md
	@exec $(BIN)/python -m bench

proofs: $(READY) ## run the slow proofs: kill loops, races, millions of events (PROOFS=short: fewer rounds)
	@$(BIN)/pytest -m proof --timeout 3600

schema: $(READY) ## write infra/sql/schema.sql from the migrations
	@$(BIN)/python -c 'from infra import log, postgres; log.configure("warning"); postgres.write_schema()'

openapi: $(READY) ## write openapi.json from the routes
	@$(BIN)/saas-litellm openapi > openapi.json.new && mv openapi.json.new openapi.json

papers: $(READY) ## write docs/errors.md, docs/endpoints.md and docs/proofs.md (runs the API tests, which takes a while)
	@RECORD_ENDPOINTS=1 $(BIN)/pytest -q tests/api -m "not proof"
	@$(BIN)/python -m tests.papers

events: $(READY) ## print a stream: make events STREAM=job-...
	@$(BIN)/saas-litellm events $(STREAM)

# Keeps what is pinned already; `rm requirements*.lock` first to take everything anew.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-annotate \
	--no-emit-options --no-emit-index-url --no-emit-trusted-host
lock: $(READY) ## pin what pyproject.toml asks for (requirements.lock, requirements-dev.lock)
	@$(COMPILE) --output-file requirements.lock pyproject.toml
	@$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean: ## remove the environment and every cache; ./data stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
