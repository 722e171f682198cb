PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Ten minutes on two cores: DQN on a real game, on a schedule shortened to fit. See the README for longer ones.
ARGS ?= --agent dqn --env ALE/Freeway-v5 --steps 24000 --num-envs 4 --seed 1 \
	--agent.buffer-size 24000 --agent.learning-starts 2000 --agent.epsilon-steps 10000 \
	--agent.target-period 500 --agent.optimizer.lr 2e-4 --evaluate-episodes 4

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

PACKAGES := common agents envs interventions monitors lab scripts

.PHONY: help train test test-rest test-all check format clean

help:  ## list what make can do (the default)
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 11

train: $(READY)  ## set up what is missing and train; ARGS='...' is any other command line of `pliant train`
	$(BIN)/pliant train $(ARGS)

test: $(READY)  ## set up what is missing and pass the quick tests; TESTS='...' names files or options of pytest
	$(PYTEST) -m "not slow and not full and not square" $(TESTS)

test-rest: $(READY)  ## pass the tests that `make test` leaves out
	$(PYTEST) -m "not slow and (full or square)" $(TESTS)

test-all: $(READY)  ## pass all tests
	$(PYTEST) -m "not slow" $(TESTS)

check: $(READY)  ## style, format, types, the direction of imports, and plain English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python .ci/plain_english.py
	mkdir -p .typecheck && ln -sfn .. .typecheck/pliant
	MYPYPATH=.typecheck $(BIN)/mypy $(PACKAGES:%=-p pliant.%)

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .typecheck .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build *.egg-info
