# `make repro` and `make test` each start from nothing but Python >= 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-all ui clean env

repro: env
	$(if $(RECIPE),cp pipeline/recipes/$(RECIPE).yaml params.yaml)
	dvc repro

test: env
	ruff check .
	ruff format --check .
	mypy pipeline
	pytest

test-all: env
	pytest -m "not gpu"

ui: env
	@echo "the runs of the present report, in one chart:"
	@echo "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&searchFilter=tags.in_report%20%3D%20'yes'&compareRunsMode=CHART"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
	mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db --host 127.0.0.1 --port 5000 --workers 1

clean:
	rm -rf .venv .runs mlruns data/prepared features models results search report dvc_plots dvc.lock .dvc/cache .dvc/tmp .dvc/config.local \
	  .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find pipeline stages tests -name __pycache__ -exec rm -rf {} +

env: $(BIN)/ready

$(BIN)/ready: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m stages.offline_plots
	touch $@
