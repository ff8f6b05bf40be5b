# Every target works from a bare clone with python3, pip and make.
# Hundreds of processes of a test run would compile all modules again, each for a second, if they might not keep what was compiled.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMO_READY := $(VENV)/.demo-installed
PORT ?=

.PHONY: help install demo test test-all lowest highest lint format simulate reliability docs dashboards chart helm-tools proto lock package audit clean bench

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements-dev.txt pyproject.toml
	@.ci/install $(PYTHON) $(VENV) requirements-dev.txt
	@touch $@ $(DEMO_READY)

$(DEMO_READY): requirements-local-demo.txt pyproject.toml
	@.ci/install $(PYTHON) $(VENV) requirements-local-demo.txt
	@touch $@

install: $(READY) ## create .venv with the locked dependencies

# Asked before anything is installed: a port that is taken.
demo: ## run the exporter with a fake AWS, MongoDB and 12 simulated workers until Ctrl-C (PORT=9999 to choose, ARGS=--fresh starts over)
	@$(PYTHON) -m exporter.demo.ports $(PORT)
	@$(MAKE) --silent --no-print-directory $(DEMO_READY)
	@exec $(BIN)/cml-worker-exporter demo $(if $(PORT),--port $(PORT)) $(ARGS)

# Most of a run is waiting: for outages, leases, and samples that become final. What is compiled before it starts is not compiled
# again in each of its processes.
test: $(READY) ## run the tests; those that take minutes are left to test-all
	@$(BIN)/python -m compileall -q exporter grafana || true
	@test -d tests/__pycache__ || $(BIN)/python -m pytest --collect-only -q > /dev/null || true
	$(BIN)/python -m pytest -n 8 --dist worksteal $(ARGS)

test-all: $(READY) ## run all tests, those of minutes too, with more kills, cold starts, stops, examples of properties, and simulated seeds
	KILL_ROUNDS=20 SHARD_KILL_ROUNDS=6 FORWARD_ROUNDS=12 COLD_STARTS=20 RANDOM_STOPS=40 OPENAPI_EXAMPLES=100 REPAIR_KILL_EVERY=1 $(BIN)/python -m pytest -n 8 --dist worksteal --nightly $(ARGS)
	$(BIN)/python -m tests.simulation --first 0 --count 100

lowest: $(READY) ## run the core tests with the lowest versions of the dependencies that pyproject.toml allows
	.ci/bounds lowest

highest: $(READY) ## run the core tests with the newest versions of the dependencies, also those newer than the locked ones
	.ci/bounds highest

lint: $(READY) ## run ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

simulate: $(READY) ## simulate the sample lifecycle with faults, hundreds of seeds (ARGS="--first 0 --count 500")
	$(BIN)/python -m tests.simulation $(ARGS)

reliability: $(READY) ## inject every fault of docs/reliability.md, measure, and write the page (many minutes)
	$(BIN)/python -m tests.tools.reliability

bench: $(READY) ## measure the exporter beside its peers and the bare calls (ARGS=--full for every size, ARGS=--help explains)
	@$(BIN)/python -m bench $(ARGS)

docs: $(READY) ## write docs/settings.md, metrics.md, http.md and the manual page from the code, and build docs/ as a site into site/
	$(BIN)/python -m tests.tools.generate_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dashboards: $(READY) ## write grafana/dashboards/*.json and docs/dashboards.md from grafana/*.py
	$(BIN)/python -m grafana.build

chart: $(READY) helm-tools ## write the Helm chart's copies of rules and dashboards, its table and schema of values, and what Helm renders
	$(BIN)/python -m tests.tools.generate_chart

CHART_TOOLS := deploy/helm/tools
OPERATOR := github.com/prometheus-operator/prometheus-operator

helm-tools: $(CHART_TOOLS)/bin/.built ## build helm and kubeconform for the tests of the chart, from Go modules (needs Go 1.26 or newer)

$(CHART_TOOLS)/bin/.built: $(CHART_TOOLS)/go.mod $(CHART_TOOLS)/crds/go.mod
	cd $(CHART_TOOLS) && GOBIN=$(CURDIR)/$(CHART_TOOLS)/bin go install tool
	cd $(CHART_TOOLS)/crds && go mod download $(OPERATOR)
	install -d $(CHART_TOOLS)/bin/crds
	install -m 644 $$(cd $(CHART_TOOLS)/crds && go list -m -f '{{.Dir}}' $(OPERATOR))/example/prometheus-operator-crd/*.yaml $(CHART_TOOLS)/bin/crds
	@touch $@

proto: $(READY) ## write exporter/history/remote_read.binpb and remote_read_pb2.pyi from remote_read.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --descriptor_set_out=exporter/history/remote_read.binpb --pyi_out=. exporter/history/remote_read.proto

lock: $(READY) ## resolve pyproject.toml into requirements*.txt (versions and hashes, no index URLs)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --extra otlp --extra postgresql -o requirements.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --extra dev -o requirements-dev.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --extra fake-aws --extra otlp --extra postgresql -o requirements-demo.txt pyproject.toml
	printf 'editables>=0.5\nhatchling>=1.25\n' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --extra demo --constraint requirements-dev.txt -o requirements-local-demo.txt pyproject.toml -
	echo 'hatchling>=1.25' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade -o requirements-build.txt -

	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade --group release -o requirements-release.txt

RELEASE := $(VENV)-release

$(RELEASE)/.installed: requirements-release.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-release.txt
	@touch $@

SHIPPED := $(VENV)-shipped

# What an installation consists of: the SBOM takes licenses and the dependencies between packages from there.
$(SHIPPED)/.installed: requirements.txt | $(RELEASE)/.installed
	$(PYTHON) -m venv --clear --without-pip $(SHIPPED)
	$(RELEASE)/bin/python -m pip --python $(SHIPPED)/bin/python install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@touch $@

package: $(RELEASE)/.installed $(SHIPPED)/.installed ## build sdist, wheel and SBOM into dist/ (PROJECT_URL=https://… gives the README absolute links)
	rm -rf dist
	$(RELEASE)/bin/python -m build --no-isolation
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible --output-file dist/cml-worker-exporter.cdx.json $(SHIPPED)/bin/python

# Strict: a dependency that the database does not know fails it, too, since nothing is known of it. An index may be a mirror without advisories.
audit: $(RELEASE)/.installed ## look for known vulnerabilities in the locked dependencies (asks PyPI's advisories; ARGS="-s osv" asks OSV)
	@for file in requirements.txt requirements-build.txt requirements-demo.txt; do \
		echo "$$file:"; \
		$(RELEASE)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $$file $(ARGS) || { \
			echo "$$file is not clean: a vulnerability is known, or a dependency could not be looked up (above)" >&2; exit 1; }; \
	done

clean: ## remove .venv and the demo's data
	rm -rf $(VENV) $(RELEASE) $(SHIPPED) .demo dist site
