# Each target makes the environment that it needs; nothing but Python 3.11 or newer, git and make is assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint results clean
.DELETE_ON_ERROR:

# The main job on embedded real data: about five minutes on two cores; ends with the page runs/quickstart/report/index.html.
quickstart: $(VENV)/.installed
	$(BIN)/python -m afa_jax.main --config configs/quickstart.py
	$(BIN)/python tools/analyse.py runs/quickstart
	$(BIN)/python tools/report.py runs/quickstart -o runs/quickstart/report

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes the quickstart's result into docs/results and the README.
results: quickstart
	$(BIN)/python tools/publish_comparison.py runs/quickstart/comparison.json

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "afa_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@
