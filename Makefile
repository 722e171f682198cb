PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := $(VENV)-lowest
NEWEST := $(VENV)-newest

# Ten minutes on two cores: DQN on a real game, on a schedule shortened to fit. See the README for longer ones.
ARGS ?= --agent dqn --env ALE/Freeway-v5 --steps 24000 --num-envs 4 --seed 1 \
	--agent.buffer-size 24000 --agent.learning-starts 2000 --agent.epsilon-steps 10000 \
	--agent.target-period 500 --agent.optimizer.lr 2e-4 --evaluate-episodes 4

# The build of torch for check-lowest and check-newest. constraints.txt names one release, because pip may take another
# release in a build for CUDA, which is several gigabytes. TORCH=torch==2.6.0 tests the lowest, TORCH=torch the newest.
TORCH ?= $(shell grep '^torch==' constraints.txt)

# -n 2: two tests at a time. TESTS='...' names files or options of pytest.
PYTEST := -m pytest -n 2 --dist worksteal
QUICK := -m "not slow and not full and not square"

.PHONY: help train test test-rest test-all check style types check-lowest check-newest gpu format clean

help:  ## list what make can do (the default)
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 15

train: $(READY)  ## set up what is missing and train; ARGS='...' is any other command line of `pliant train`
	$(BIN)/pliant train $(ARGS)

test: $(READY)  ## set up what is missing and pass the quick tests; TESTS='...' names files or options of pytest
	$(BIN)/python $(PYTEST) $(QUICK) $(TESTS)

test-rest: $(READY)  ## pass the tests that `make test` leaves out
	$(BIN)/python $(PYTEST) -m "not slow and (full or square)" $(TESTS)

test-all: $(READY)  ## pass all tests
	$(BIN)/python $(PYTEST) -m "not slow" $(TESTS)

check: style types  ## style and types

style: $(READY)  ## style, format, the direction of imports, and plain English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python .ci/plain_english.py

types: $(READY)  ## types
	mkdir -p .typecheck && ln -sfn .. .typecheck/pliant
	$(BIN)/mypy

check-lowest: $(LOWEST)/.ready-$(TORCH)  ## pass the quick tests with the lowest supported dependencies, in an environment of its own
	$(LOWEST)/bin/python $(PYTEST) $(QUICK) $(TESTS)

check-newest:  ## pass the quick tests with the newest dependencies, in a new environment; PYTHON='...' is the version
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --editable ".[test]" "$(TORCH)"
	$(NEWEST)/bin/python $(PYTEST) $(QUICK) $(TESTS)

# Without an environment of its own: a machine with a GPU may have no network. GPU_PYTHON is a Python with torch for CUDA.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu:  ## laws, captured updates and figures on a GPU, written to docs/gpu.md and the folder OUT; GPU='...' is options
	$(GPU_PYTHON) tests/on_gpu.py $(GPU)

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(LOWEST)/.ready-$(TORCH): pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[test]" "$(TORCH)"
	touch $@

clean:  ## remove the environments and all caches
	rm -rf $(VENV) $(LOWEST) $(NEWEST) .typecheck build *.egg-info \
		.pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
