# make train   sets up what is missing and trains; ARGS='…' is any other command line of `pliant train`
# make test    sets up what is missing and passes the tests
# make check   style and types

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Ten minutes on two cores: DQN on a real game, on a schedule shortened to fit. See the README for longer ones.
ARGS ?= --agent dqn --env ALE/Freeway-v5 --steps 24000 --num-envs 4 --seed 1 \
	--agent.buffer-size 24000 --agent.learning-starts 2000 --agent.epsilon-steps 10000 \
	--agent.target-period 500 --agent.optimizer.lr 2e-4 --evaluate-episodes 4

.PHONY: train test check clean

train: $(READY)
	$(BIN)/pliant train $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

check: $(READY)
	$(BIN)/ruff check .
	mkdir -p .typecheck && ln -sfn .. .typecheck/pliant
	MYPYPATH=.typecheck $(BIN)/mypy -p pliant.agents -p pliant.envs -p pliant.interventions -p pliant.scripts

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .typecheck .pytest_cache .ruff_cache .mypy_cache build *.egg-info
