# Targets: test, test-long, lint, format, demo, bench. Each sets up $(VENV) first where it is missing or outdated.

PYTHON ?= python3
VENV ?= .venv
# Two processes halve the time on two cores; more would each load torch and its compilers.
PYTEST_ARGS ?= -n 2 --dist worksteal

run := $(VENV)/bin/python -m
ready := $(VENV)/.ready

.DELETE_ON_ERROR:
.PHONY: test test-long lint format demo bench clean

test: lint
	$(run) pytest $(PYTEST_ARGS)

test-long: $(ready)
	$(run) pytest $(PYTEST_ARGS) -m long

lint: $(ready)
	$(run) ruff check
	$(run) ruff format --check
	$(run) mypy

format: $(ready)
	$(run) ruff check --fix
	$(run) ruff format

demo: $(ready)
	$(run) benchmarks.demo

bench: $(ready)
	$(run) benchmarks.table

# The constraints pin torch by its plain version, so pip takes the build that this machine offers.
$(ready): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(run) pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
