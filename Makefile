# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test slow conformance lint clean

# torch first, by itself: a resolver that picks it later may take another build. Elsewhere a newer torch is fine: pyproject.toml asks for 2.11 or later.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/quatrain demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov=quatrain.parts --cov=quatrain.estimator --cov-report=term-missing:skip-covered --cov-fail-under=100

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The same gradients as the peers, and with Liger's kernels: dev-only, in an environment of its own.
PEERS := .venv-peers
$(PEERS)/ready: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet trl==1.16.0 transformers==5.23.0 liger-kernel==0.8.5 pytest --editable .
	touch $(PEERS)/ready

conformance: $(PEERS)/ready
	HF_HUB_OFFLINE=1 $(PEERS)/bin/python -m pytest -s tests/conformance

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(PEERS) runs
