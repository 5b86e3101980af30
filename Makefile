# Everything starts here; `make help` lists the targets. Each target creates what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKS := $(wildcard infra/lock/*.txt)

.PHONY: help setup hooks demo smoke airflow test integration check format docs parity bench docker compose-env \
	lock lock-check audit release licences sbom clean

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Make the virtual environment from the hashed lock

# Without resolving: the lock is complete. torch is in torch.txt, without hashes; docs/supply-chain.md says why.
$(READY): pyproject.toml $(LOCKS) infra/prepare.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r infra/lock/build.txt
	$(PIP) --require-hashes --no-deps --no-build-isolation -r infra/lock/all.txt
	$(PIP) -c infra/lock/torch.txt torch
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python infra/prepare.py
	touch $@

demo: $(READY) ## Run the main job; IMAGES=<folder or zip with class folders> for your own images
	$(BIN)/ghn demo --out runs/demo --images "$(or $(IMAGES),digits)"

smoke: $(READY) ## Run the same job on a tiny shard, in under three minutes
	$(BIN)/ghn demo --tiny --out runs/smoke

airflow: $(READY) ## Run Airflow, MLflow and an object store with all DAGs, and say where to click; Ctrl-C stops it
	$(BIN)/ghn airflow --folder runs/airflow --port $(or $(PORT),8080)

test: $(READY) ## Run the tests, two at a time, with coverage (at most ten minutes, no root)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not integration" -n 2 --dist loadfile --cov

integration: $(READY) ## Run the tests with servers and containers (Docker parts need an engine)
	$(BIN)/python -m pytest -m integration --durations=25

check: $(READY) ## Run the linter, the import contracts and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=dags $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

hooks: $(READY) ## Let git run the quick part of `make check` before each commit
	$(BIN)/pre-commit install

format: $(READY) ## Mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(READY) ## Compare with the published system's data, if it is there
	$(BIN)/python -m pytest tests/parity -m "integration or not integration"

bench: $(READY) ## Measure speed and memory; exits with 1 where a target is not met
	$(BIN)/python -m benchmarks

docs: $(READY) ## Build the documentation into build/site; fails for broken links and undocumented names
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docker: ## Build the images ghn-train and ghn-platform
	docker build -t ghn-train --build-arg GIT_COMMIT=$$(git rev-parse HEAD) .
	docker build -t ghn-platform --build-arg GIT_COMMIT=$$(git rev-parse HEAD) --target platform .

compose-env: ## Write infra/.env with fresh secrets for infra/compose.yaml
	@$(PYTHON) infra/compose/make_env.py

lock: ## Pin every dependency anew, with hashes; UPGRADE=1 takes the newest versions
	@test -x $(BIN)/uv || $(MAKE) setup
	$(BIN)/python -m infra.supply.lock $(if $(UPGRADE),--upgrade)

lock-check: $(READY) ## Ask the registry whether the locks resolve and their files have their hashes
	$(BIN)/python -m infra.supply.lock --check
	$(PIP) --dry-run --ignore-installed --require-hashes --no-deps --no-build-isolation -r infra/lock/all.txt

audit: $(READY) ## Look for known vulnerabilities; fails with 3, not 1, where no vulnerability service can be asked
	$(BIN)/python -m infra.supply.audit

release: check ## Build the wheel and the source archive into dist/, and check what a package page would show
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*

licences: $(READY) ## Write docs/licences.md; fails where a licence is unknown or not allowed
	$(BIN)/python -m infra.supply.licences

sbom: $(READY) ## Write build/sbom.json (CycloneDX); IMAGE=ghn-train looks into that image, Debian packages too
	$(BIN)/python -m infra.supply.sbom $(if $(IMAGE),--image $(IMAGE)) --out build/sbom.json

clean: ## Remove everything that was made here but runs/, which holds what you trained
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
