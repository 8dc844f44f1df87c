# Two commands: `make demo` shows it, `make test` proves it. Both need Python 3.11–3.13 with pip, and nothing else.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=
SEED ?= 1
STEPS ?= 100000
SIMULATE_ARGS ?=

.PHONY: help demo up test lint types tests slow-tests simulate engine-test clickhouse-test bench docs lock audit sbom format clean venv

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:
	@$(PYTHON) scripts/bootstrap.py

demo: venv  ## bring everything up, drive it as two tenants until one is out of tokens, check the books
	@$(BIN)/token-quota demo

up: venv  ## bring everything up and keep it running (Ctrl-C ends it)
	@$(BIN)/token-quota up

test: lint types tests  ## lint, types and all tests but the slow ones

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/docs.py --check
	@if command -v luacheck >/dev/null; then luacheck -q kong/plugins; \
	 else echo "luacheck: left out, not on PATH (Debian: lua-check)"; fi

types: venv
	$(BIN)/mypy

tests: venv
	$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

slow-tests: venv  ## faults under load, planted bugs, failovers, the engine's bench, every token id: some fifteen minutes more
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

engine-test: venv  ## real vLLM on the CPU behind the gateway (2 GB, installed once; left out where its wheels are not)
	$(BIN)/python scripts/engine_test.py

clickhouse-test: venv  ## the ClickHouse sink on a ClickHouse in process (0.5 GB, installed once; left out likewise)
	$(BIN)/python scripts/clickhouse_test.py

simulate: venv  ## the whole application layer in one seeded world of faults: make simulate SEED=7 STEPS=100000
	$(BIN)/python -m tests.simulation --seed $(SEED) --steps $(STEPS) $(SIMULATE_ARGS)

bench: venv  ## requests/s, latency, CPU and memory, beside stock kong-pdk in the same run
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.tap

audit: venv  ## known vulnerabilities in what the locks pin (pip-audit; needs a network)
	$(BIN)/python scripts/audit.py

sbom: venv  ## build/sbom.cdx.json: what the locks pin, as CycloneDX
	$(BIN)/python scripts/sbom.py

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv  ## write docs/configuration.md from the schema
	$(BIN)/python scripts/docs.py

lock: venv  ## resolve the locks anew (uv; hashes, no addresses)
	$(BIN)/python scripts/lock.py

clean:
	rm -rf .venv .engine .chdb .bootstrap build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
