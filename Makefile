# Every target sets up what it needs: one virtual environment in .venv, exact versions from constraints.txt.
PYTHON ?= python3
MINUTES ?= 10
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# onnxruntime reports its use to its makers unless it is told not to.
export ORT_DISABLE_TELEMETRY := 1
# Tests start hundreds of processes; one that has to compile what it imports takes a third longer to start.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := holdfast service model_export tests proto benchmarks

.PHONY: demo serve prometheus test test-fast check train matrix proto bench bench-quick bench-scale fuzz faults soak \
        simulate alerts protections mutations deploy-check public-check release-check settings errors format clean

demo: $(VENV)/.server           ## a network's memory, served live, surviving kill -9
	$(BIN)/holdfast demo

serve: $(VENV)/.server          ## a server with the shipped models and an embedded store
	$(BIN)/holdfast serve

# Threads of numpy wait for each other where several workers share the cores.
test test-fast: export OPENBLAS_NUM_THREADS := 1

test: $(VENV)/.dev $(VENV)/.protobuf7 $(VENV)/.tritonclient $(VENV)/.node
	$(BIN)/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev         ## the tests that start no process, within a minute
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not process" tests/unit tests/scenarios tests/simulation \
		tests/fuzz tests/test_*.py

check: $(VENV)/.dev $(VENV)/.protobuf7   ## format, lint, strict types, architecture, fresh stubs, settings and errors
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_stubs.py tests/test_settings_reference.py \
		tests/test_errors_reference.py

format: $(VENV)/.dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

train: $(VENV)/.train           ## trains, exports and checks the shipped models, or the NETWORKS named
	$(BIN)/python -m model_export train $(if $(NETWORKS),--networks $(NETWORKS))

matrix: $(VENV)/.train $(VENV)/.server   ## networks of PyTorch, exported, served and compared; build/matrix.md
	$(BIN)/python -m tests.matrix

prometheus: $(VENV)/.server     ## the prometheus on PATH, scraping `make serve`, on 127.0.0.1:9090
	deploy/prometheus/run-locally

bench: $(VENV)/.dev             ## beside peers and ceilings, in turns; benchmarks/results
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.dev       ## the same in two minutes; without Triton until `make bench` has set it up
	$(BIN)/python -m benchmarks --quick --rounds 2 --seconds 1 --out build/bench

bench-scale: $(VENV)/.dev       ## 1, 2 and 4 replicas on a cluster that loses a node; benchmarks/results/scale.md
	$(BIN)/python -m benchmarks.scale

fuzz: $(VENV)/.dev              ## every parser of untrusted bytes for MINUTES; what breaks one is kept in the corpus
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

SEEDS ?= 1000000000
FIRST ?= 0
simulate: $(VENV)/.dev          ## deployments in virtual time for MINUTES, or SEEDS of them, from seed FIRST on
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) --minutes $(MINUTES)

FAULTS ?= --minutes 20
faults: $(VENV)/.dev            ## kills, pauses, cuts and fills up a deployment under load; build/faults.md
	HOLDFAST_FAULTS=long $(BIN)/python -m pytest -q tests/faults
	$(BIN)/python -m tests.faults.gone_back
	$(BIN)/python -m tests.faults.store_losses
	$(BIN)/python -m tests.faults.callers --cases 10000
	$(BIN)/python -m tests.faults.long $(FAULTS)

soak: $(VENV)/.dev              ## half load with churn for 10 minutes; what grows fails; build/soak.md
	$(BIN)/python -m tests.faults.soak

alerts: $(VENV)/.dev            ## breaks a deployment so that every alert fires and clears; build/alerts.md
	$(BIN)/python -m tests.alerts

protections: $(VENV)/.dev       ## takes every protection out, one at a time, and sees its test fail
	$(BIN)/python -m tests.protections

mutations: $(VENV)/.dev $(VENV)/.mutmut   ## changes pure files in every way; too few changes noticed fail
	$(BIN)/python -m tests.mutations

deploy-check: $(VENV)/.dev      ## runs docker-compose.yml without an engine, every profile; as root
	HOLDFAST_TEST_DEPLOY=long $(BIN)/python -m pytest -q tests/deploy

public-check: $(VENV)/.dev      ## downloads streaming networks of other people and serves them as they are
	$(BIN)/python -m tests.public

proto: $(VENV)/.dev             ## regenerates the committed stubs
	$(BIN)/python proto/generate.py

settings: $(VENV)/.dev          ## writes docs/operate/settings.md from the settings
	$(BIN)/python -m service.settings.reference > docs/operate/settings.md.new
	mv docs/operate/settings.md.new docs/operate/settings.md

errors: $(VENV)/.dev            ## writes docs/errors.md from the errors
	$(BIN)/python -m holdfast.errors.reference > docs/errors.md.new
	mv docs/errors.md.new docs/errors.md

release-check: $(VENV)/.dev     ## builds wheel and sdist, installs and runs them on every Python there is
	$(BIN)/python -m tests.release

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[server,embedded,tokenizer]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[server,embedded,dev]'
	touch $@

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[train,dev]'
	touch $@

# The stubs must import beside protobuf 6 (in the environment) and 7 (in this folder).
$(VENV)/.protobuf7: $(BIN)/python
	$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps --upgrade --target $(VENV)/protobuf7 protobuf==7.36.2
	touch $@

# Triton's client, whose messages must not collide with ours; what else it needs is in the environment.
$(VENV)/.tritonclient: $(BIN)/python tests/support/tritonclient.txt
	$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps --upgrade --target $(VENV)/tritonclient \
		--requirement tests/support/tritonclient.txt
	touch $@

# Beside the environment, since it brings a pytest and an editor's worth of packages of its own.
$(VENV)/.mutmut: $(BIN)/python
	$(BIN)/python -m pip --disable-pip-version-check --quiet install --upgrade --target $(VENV)/mutmut mutmut==3.8.1
	touch $@

# The contract's test from another language. Where it cannot be set up it is skipped, and says so; without a
# stamp, so that it is tried again.
$(VENV)/.node: $(BIN)/python tests/node/package.json tests/node/package-lock.json
	@mkdir -p $(VENV)/node && cp tests/node/package.json tests/node/package-lock.json $(VENV)/node/
	@if command -v node >/dev/null && command -v npm >/dev/null && \
		npm ci --prefix $(VENV)/node --ignore-scripts --no-audit --no-fund --silent; then touch $@; \
	else echo "no node, npm or npm packages here: the contract is not tried from Node"; fi

clean:
	rm -rf $(VENV) build dist
