# `make demo` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
# The package does not pin torch. On a machine with a GPU: make TORCH=torch demo
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
# a process a core, each with one thread; the tests of a file stay together, for they share what they make, and files come
# in order: the last ones are small
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
test test-fast test-front test-inputs test-lowest release-check: export OMP_NUM_THREADS = 1
# Material's notice about MkDocs 2, which is not a warning of this site
docs: export NO_MKDOCS_2_WARNING = 1
SOURCES := src tests examples benchmarks

.PHONY: demo app docs release-check test test-extras test-fast test-front test-inputs test-lowest style quality clean

$(VENV)/installed: setup.cfg pyproject.toml
	@echo "installing into $(VENV): some minutes, and 3 GB on disk"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/facesnap demo

app: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[app]"
	$(BIN)/facesnap app --open

# Strict: a dead link or a public name without documentation fails. The site is in outputs/site.
docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict --site-dir outputs/site

# The files of a release, built, installed into a clean environment, and passed through the tests of the source archive.
release-check: $(VENV)/installed
	rm -rf dist outputs/release
	$(BIN)/pip install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv outputs/release/venv
	outputs/release/venv/bin/pip install --quiet "$(TORCH)"
	outputs/release/venv/bin/pip install --quiet "$$(ls dist/*.whl)[test]"
	cd outputs/release && venv/bin/facesnap demo --people 1
	tar -xzf dist/*.tar.gz -C outputs/release --strip-components 1 --exclude src
	cd outputs/release && venv/bin/python $(PYTEST)

FRONT := tests/examples tests/app tests/docs tests/benchmarks

# All tests, but those of the next target.
test: $(VENV)/installed
	$(BIN)/python $(PYTEST) $(addprefix --ignore=,$(FRONT))

# What users run: examples, benchmarks, the app in a browser, notebooks, and every snippet of README, documentation and cards.
test-front: $(VENV)/installed
	$(BIN)/python $(PYTEST) $(FRONT)

# Those without the mark `slow`: less than three minutes on two cores.
test-fast: $(VENV)/installed
	$(BIN)/python $(PYTEST) -m "not slow"

# All made-up and damaged inputs, with the numbers of those that were refused and taken: see tests/input_counts.py.
INPUTS := tests/adapter/test_damage.py tests/adapter/test_weights.py tests/data/test_shard_damage.py \
	tests/faces/test_photo_damage.py tests/faces/test_properties.py tests/pipelines/test_properties.py
test-inputs: export FACESNAP_ALL_INPUTS = 1
test-inputs: $(VENV)/installed
	$(BIN)/python $(PYTEST) -m slow $(INPUTS)

# What stands on diffusers' and transformers' insides, with the oldest versions that setup.cfg promises, in an environment of their own.
LOWEST := .venv-lowest
$(LOWEST)/installed: setup.cfg tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet "$(TORCH)"
	$(LOWEST)/bin/pip install --quiet --editable ".[test]" --constraint tests/lowest.txt
	touch $@

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python $(PYTEST) -m "not slow" tests/test_upstream.py tests/models tests/pipelines/test_numbers.py

# What `pip install "facesnap-diffusers[train]"` brings is enough to prepare and train, and leaves torch as it is.
EXTRAS := .venv-extras
test-extras:
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/pip install --quiet "$(TORCH)"
	$(EXTRAS)/bin/pip freeze | grep "^torch==" > $(EXTRAS)/torch
	$(EXTRAS)/bin/pip install --quiet --editable ".[train]"
	$(EXTRAS)/bin/pip freeze | grep "^torch==" | diff $(EXTRAS)/torch -
	$(EXTRAS)/bin/pip check
	$(EXTRAS)/bin/python -c "import facesnap_diffusers.training.trainer, facesnap_diffusers.data.preparation, tensorboard"

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

quality: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(LOWEST) $(EXTRAS) build dist outputs
