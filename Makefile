# Everything a developer or a newcomer runs. `make help` lists the targets.

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help

# The interpreter that the environments are built from; everything else is installed into them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
STAMP := .venv/.installed
CONSTRAINTS := constraints/venv.txt
AIRFLOW_PY := .venv-airflow/bin/python
AIRFLOW_STAMP := .venv-airflow/.installed
AIRFLOW_CONSTRAINTS := constraints/venv-airflow.txt
KUBEFLOW_PY := .venv-kubeflow/bin/python
KUBEFLOW_STAMP := .venv-kubeflow/.installed
KUBEFLOW_CONSTRAINTS := constraints/venv-kubeflow.txt
PEERS_PY := .venv-peers/bin/python
PEERS_STAMP := .venv-peers/.installed
PEERS_CONSTRAINTS := constraints/venv-peers.txt

.PHONY: help setup demo airflow kubeflow compile test test-fast test-full image-test chaos bench kernels-table gpu-test gpu-kernels gpu-e2e gpu-profile docs lock format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) $(AIRFLOW_STAMP) $(KUBEFLOW_STAMP)  ## build .venv (engine and job), .venv-airflow, .venv-kubeflow

# pip installs torch because pip's own settings (PIP_FIND_LINKS, an index of CPU builds) say which
# build this machine wants; uv, which reads none of them, is several times faster for the rest. The
# bytecode costs half a minute once, and each of the many processes of the tests saves three seconds.
$(STAMP): $(CONSTRAINTS) setup.cfg pyproject.toml
	@echo "setup: building .venv with $(PYTHON)"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) uv torch setuptools
	@.venv/bin/uv pip install --quiet --python $(PY) --constraint $(CONSTRAINTS) --compile-bytecode \
		--no-build-isolation --editable '.[engine,gpu,job,dev]'
	@touch $(STAMP)

# No torch in it: an Airflow worker starts the engine elsewhere.
$(AIRFLOW_STAMP): $(AIRFLOW_CONSTRAINTS) setup.cfg pyproject.toml | $(STAMP)
	@echo "setup: building .venv-airflow"
	@test -x $(AIRFLOW_PY) || $(PYTHON) -m venv .venv-airflow
	@.venv/bin/uv pip install --quiet --python $(AIRFLOW_PY) --constraint $(AIRFLOW_CONSTRAINTS) setuptools
	@.venv/bin/uv pip install --quiet --python $(AIRFLOW_PY) --constraint $(AIRFLOW_CONSTRAINTS) \
		--compile-bytecode --no-build-isolation --editable '.[airflow,airflow-kubernetes,airflow-dev]'
	@touch $(AIRFLOW_STAMP)

# Nor in this one: a pipeline is compiled and submitted here, and runs in an image.
$(KUBEFLOW_STAMP): $(KUBEFLOW_CONSTRAINTS) setup.cfg pyproject.toml | $(STAMP)
	@echo "setup: building .venv-kubeflow"
	@test -x $(KUBEFLOW_PY) || $(PYTHON) -m venv .venv-kubeflow
	@.venv/bin/uv pip install --quiet --python $(KUBEFLOW_PY) --constraint $(KUBEFLOW_CONSTRAINTS) setuptools
	@.venv/bin/uv pip install --quiet --python $(KUBEFLOW_PY) --constraint $(KUBEFLOW_CONSTRAINTS) \
		--compile-bytecode --no-build-isolation --editable '.[kubeflow,kubeflow-dev]'
	@touch $(KUBEFLOW_STAMP)

# What vlmflow is measured beside; built by the first `make bench`, and no part of `make setup`. The
# list is whole, so nothing is resolved: the exporter would ask for what must not be there.
$(PEERS_STAMP): $(PEERS_CONSTRAINTS) | $(STAMP)
	@echo "bench: building .venv-peers"
	@test -x $(PEERS_PY) || $(PYTHON) -m venv .venv-peers
	@$(PEERS_PY) -m pip install --quiet --disable-pip-version-check --no-deps --constraint $(PEERS_CONSTRAINTS) torch
	@.venv/bin/uv pip install --quiet --python $(PEERS_PY) --no-deps --compile-bytecode --requirement $(PEERS_CONSTRAINTS)
	@touch $(PEERS_STAMP)

demo: $(STAMP)  ## run the main job end to end: S3 manifest in, committed results and an MLflow run out
	$(PY) -m examples.demo

airflow: $(STAMP) $(AIRFLOW_STAMP)  ## a real Airflow with S3, MLflow, the demo's data and our DAGs, until Ctrl-C
	$(PY) -m examples.airflow_demo

kubeflow: $(STAMP) $(KUBEFLOW_STAMP)  ## the batch pipeline in containers of its image, with S3, MLflow and the demo's data
	$(KUBEFLOW_PY) -m examples.kubeflow_demo

test: $(STAMP) $(AIRFLOW_STAMP) $(KUBEFLOW_STAMP)  ## lint, types, import contracts and all tests but the slow ones (what CI runs)
	$(PY) -m tools.check

test-fast: $(STAMP)  ## the tests that take no model, no server and no process
	$(PY) -m tools.check --fast

test-full: $(STAMP) $(AIRFLOW_STAMP) $(KUBEFLOW_STAMP)  ## everything, the slow tests too
	$(PY) -m tools.check --full

# As root, with podman, runc and debootstrap: see docs/image.md.
image-test: $(STAMP)  ## build the image on bases made here, and run jobs in it
	$(PY) -m tools.image.build
	$(PY) -m pytest -rs --durations=5 tests/image

chaos: $(STAMP)  ## kill -9 a job at every named point, in every order, and look for what is lost
	$(PY) -m pytest --durations=5 tests/job/chaos tests/job/model

bench: $(STAMP) $(PEERS_STAMP)  ## measure vlmflow beside its peers on this CPU; BENCH=--quick only looks whether it runs
	$(PY) -m benchmarks.cpu $(BENCH)

kernels-table: $(STAMP)  ## compile every kernel for every GPU we know, and keep what they take
	$(PY) -m tools.compile_kernels --write

# On a machine with a GPU: its own python3 with its CUDA build of torch, nothing of .venv. Their
# numbers go to $OUT; RESUME=--resume goes on with what an earlier call has left there.
GPU_PYTHON ?= python3
GPU_RUN = PYTHONPATH=engine:components:. HF_HUB_OFFLINE=1 $(GPU_PYTHON)
OUT ?= benchmarks/results
RESUME ?=

gpu-test:  ## on a GPU: the kernels beside float64, tiny models beside transformers
	$(GPU_RUN) -m tests.gpu.on_device --out $(OUT) $(RESUME)

gpu-kernels:  ## on a GPU: the kernels beside what else computes the same
	$(GPU_RUN) -m benchmarks.gpu.kernels --out $(OUT) $(RESUME)

gpu-e2e:  ## on a GPU: 7B-shaped models end to end beside transformers
	$(GPU_RUN) -m benchmarks.gpu.e2e --out $(OUT) $(RESUME)

gpu-profile:  ## on a GPU: what a step of decode and one of prefill are made of
	$(GPU_RUN) -m benchmarks.gpu.profile --out $(OUT) $(RESUME)

docs: $(STAMP)  ## write docs/api/ and docs/models.md from the sources
	$(PY) -m tools.api_reference
	$(PY) -m tools.models_page

compile: $(STAMP) $(KUBEFLOW_STAMP)  ## write pipelines/compiled/ and the READMEs of Kubeflow's components
	$(KUBEFLOW_PY) -m tools.kubeflow_files

lock: $(STAMP)  ## resolve the newest versions anew into constraints/
	$(PY) -m tools.lock

format: $(STAMP)  ## put the code into its form
	.venv/bin/ruff check --quiet --fix .
	.venv/bin/ruff format --quiet .

clean:  ## remove the environment and all that was built
	rm -rf .venv .venv-airflow .venv-kubeflow .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
