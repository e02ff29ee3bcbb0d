# Posthouse. Needs make and Python 3.11 or newer; everything else goes into .venv by itself.
#
#   make demo    three regions, a crash and a cut, and a look at every byte at rest      (ARGS="--dir D --json FILE")
#   make test    every test                                                              (ARGS="-k words tests/relay")
#   make lint    ruff and mypy
#   make bench   the short suite of load scenarios, below 5 minutes; or one of them       (SCENARIO=…, ARGS="--html FILE")
#   make simulate  federations in virtual time, with faults                              (SEEDS=n, or SEED=k to replay one)
#   make defects   the simulator against defects planted on purpose
#   make crash     real nodes under load, killed, cut off from power, wiped, …           (ROUNDS=n SEED=k KIND=… SYNC=off)
#   make docs    rewrite the generated parts of docs/
#   make clean   remove what make made
#
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
SCENARIO ?=
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint configs/constraints.txt

# Without bytecode every process compiles everything anew, a third of a second long: tests and demo start hundreds of them.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that is new enough; asked only when .venv has to be made.
find_python = for python in $(PYTHON) $(if $(PYTHON),,python3 python3.14 python3.13 python3.12 python3.11 python); do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$python"; break; fi; done

.PHONY: help demo test lint bench simulate defects crash docs clean
help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/posthouse demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 3 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/posthouse bench $(if $(SCENARIO),run $(SCENARIO),suite) $(ARGS)

simulate: $(VENV)/.installed-dev
	$(BIN)/python -m tests.simulation $(if $(SEEDS),SEEDS=$(SEEDS)) $(if $(SEED),SEED=$(SEED)) $(ARGS)

defects: $(VENV)/.installed-dev
	$(BIN)/python -m tests.simulation.hunt $(if $(SEEDS),SEEDS=$(SEEDS)) $(ARGS)

crash: $(VENV)/.installed-dev
	$(BIN)/python -m tests.crash $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(KIND),--kind $(KIND)) $(if $(SYNC),--sync $(SYNC)) $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python -m docs.vectors
	$(BIN)/python -m cluster.cli.reference > docs/CLI.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python="$$($(find_python))"; \
	if [ -z "$$python" ]; then \
		echo "make: Posthouse needs Python 3.11 or newer$(if $(PYTHON), and $(PYTHON) is not). Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then "$$python" -m venv $(VENV); \
	elif "$$python" -m pip --version >/dev/null 2>&1 && "$$python" -m venv --without-pip $(VENV); then \
		"$$python" -m pip --python $(VENV) install --quiet pip; \
	else \
		echo "make: $$python cannot make virtual environments. Install its venv package (Debian, Ubuntu: apt install python3-venv), or name another: make PYTHON=/path/to/python3" >&2; exit 1; fi

# The stamps make a second run quick; a change of the dependencies makes the next one install again.
$(VENV)/.installed: pyproject.toml configs/constraints.txt | $(BIN)/python
	@echo "installing Posthouse into $(VENV)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml configs/constraints.txt | $(BIN)/python
	@echo "installing Posthouse and its development tools into $(VENV)"
	@$(INSTALL) --editable ".[dev]"
	@$(INSTALL) --no-deps --ignore-requires-python aics-tlog aics-witness  # ask for 3.12, and run on 3.11
	@touch $@ $(VENV)/.installed
