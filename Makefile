# `make demo` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
# The package does not pin torch. On a machine with a GPU: make TORCH=torch demo
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
SOURCES := src tests examples benchmarks

.PHONY: demo test test-lowest style quality clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/facesnap demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

# The oldest versions that setup.cfg promises, in an environment of their own.
LOWEST := .venv-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet "$(TORCH)"
	$(LOWEST)/bin/pip install --quiet --editable ".[test]" --constraint tests/lowest.txt
	$(LOWEST)/bin/python -m pytest

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

quality: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) build dist outputs
