# Everything here needs Python 3.11 or newer, make and a shell; only test-foreign needs apt and root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
BASE   ?= python:3.13-slim-bookworm
MAGIKA ?= ../shared/models/magika
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
FOREIGN_PACKAGES := mosquitto skopeo docker-registry chromium curl openssl openssh-client openssh-server strace systemd

export ORT_DISABLE_TELEMETRY = 1
# tests start hundreds of processes, each of which would compile every module anew
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test test-foreign test-frameworks image bench-packager bench-serving bench-swap reproduce chaos power-loss check format audit lock clean

help:            ## Show the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

demo: $(VENV)/.demo   ## The whole loop on this machine: make demo, or make demo ARGS=--exit
	@$(BIN)/edgepack demo $(ARGS)

# three for two cores: a good part of the time tests wait for brokers and daemons
test: $(VENV)/.dev    ## Every test that needs no Debian tools
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not foreign and not framework" $(ARGS)

test-frameworks: $(VENV)/.frameworks   ## Tests with PyTorch, TensorFlow, XGBoost, LightGBM and MLflow, which it installs
	EDGEPACK_FRAMEWORKS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m framework $(ARGS)

test-foreign: $(VENV)/.dev   ## Tests against Debian's tools, which it installs
	@missing=""; for package in $(FOREIGN_PACKAGES); do \
	  dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi
	command -v promtool >/dev/null || $(MAKE) --no-print-directory $(BIN)/promtool
	PATH="$(abspath $(BIN)):$$PATH" EDGEPACK_FOREIGN=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m foreign $(ARGS)

$(BIN)/promtool:   # alone: its package would start a server
	$(SUDO) apt-get update -qq
	cd $(VENV) && apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb \
	  | tar -xf - --transform 's|.*/||' -C bin ./usr/bin/promtool && rm prometheus_*.deb

reproduce:       ## Build one bundle in two clean environments and compare (about 3 minutes)
	PYTHON=$(PYTHON) tests/support/two-environments

bench-packager: $(VENV)/.frameworks   ## edgepack build beside onnxruntime's defaults, into docs/benchmarks.md (5 minutes, 10 the first time)
	$(BIN)/python bench/packager/run.py --magika $(MAGIKA) --write docs/benchmarks.md $(ARGS)

bench-swap: $(VENV)/.dev   ## Replace a 40 MB model 200 times under load, in a real daemon (8 minutes)
	$(BIN)/python bench/swap.py $(ARGS)

bench-serving: $(VENV)/.dev   ## A prediction in a device's daemon beside FastAPI + onnxruntime and session.run, into docs/benchmarks.md (2 minutes)
	$(BIN)/python bench/serving.py --write docs/benchmarks.md $(ARGS)

chaos: $(VENV)/.dev   ## Kill real daemons at every system call (under an hour, resumable; make chaos ARGS=--errors lets calls fail)
	@command -v strace >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends strace >/dev/null; }
	$(BIN)/python tests/chaos/kills.py $(ARGS)

power-loss: $(VENV)/.dev   ## Cut the power in every legal way, and leave out every sync (about twenty minutes)
	EDGEPACK_EVERY=1 $(BIN)/python -m pytest -q -n 2 tests/runtime/activation/test_faults.py
	$(BIN)/python tests/chaos/power.py $(ARGS)

# its format: Docker's keeps the health check, OCI's knows none
image:           ## The device's container image, localhost/edgepack (needs buildah; BASE= another base, ARGS="--platform linux/arm64")
	buildah build --format docker --build-arg BASE=$(BASE) --file Dockerfile.arm64 --tag localhost/edgepack $(ARGS) .

check: $(VENV)/.dev   ## Style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(VENV)/.dev   ## Known vulnerabilities of the pinned requirements
	$(BIN)/pip-audit --requirement requirements/dev.txt --disable-pip

lock:            ## Pin the requirements again (needs uv)
	requirements/lock

# torch by its version alone: its CPU build has other hashes than the index's own
$(VENV)/.frameworks: requirements/frameworks.txt $(VENV)/.dev
	@echo "installing PyTorch, TensorFlow and other frameworks (about a minute the first time)"
	@$(BIN)/python -m pip install --progress-bar off --quiet --require-hashes -r requirements/frameworks.txt
	@$(BIN)/python -m pip install --progress-bar off --quiet torch==2.13.0
	@touch $@

clean:           ## Remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "installing pinned requirements (about a minute the first time)"
	@$(BIN)/python -m pip install --progress-bar off --require-hashes -r requirements/demo.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "installing pinned requirements for development (about a minute the first time)"
	@$(BIN)/python -m pip install --progress-bar off --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.demo
