# `make demo` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
# The package does not pin torch. On a machine with a GPU: make TORCH=torch demo
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
SOURCES := src tests examples benchmarks

.PHONY: demo test test-fast test-lowest style quality clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/facesnap demo

# All tests.
test: $(VENV)/installed
	$(BIN)/python -m pytest

# Those without the mark `slow`: less than three minutes on two cores.
test-fast: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow"

# The same with the oldest versions that setup.cfg promises, in an environment of their own.
LOWEST := .venv-lowest
$(LOWEST)/installed: setup.cfg tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet "$(TORCH)"
	$(LOWEST)/bin/pip install --quiet --editable ".[test]" --constraint tests/lowest.txt
	touch $@

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -m "not slow"

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

quality: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(LOWEST) build dist outputs
