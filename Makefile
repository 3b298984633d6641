# Everything works on a fresh machine: the environment is made when it is missing or out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-smoke test-slow check docs format clean
.DELETE_ON_ERROR:

# The stamps say what is installed; they are older than pyproject.toml only after it changed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hone into $(VENV) (about a minute, once) ..."
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hone and its development tools into $(VENV) (about two minutes, once) ..."
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed            ## the main job on built-in data, start to finish
	$(BIN)/hone demo

test: $(VENV)/.installed-dev        ## every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-smoke: $(VENV)/.installed-dev  ## the quick pass, under half a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m smoke -n auto --dist loadfile

test-slow: $(VENV)/.installed-dev   ## the long ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.installed-dev       ## formatting, lint, types and the rooms' borders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev        ## docs/models.md, from the code and the tests of every family
	OMP_NUM_THREADS=1 HONE_MODELS_PAGE=docs/models.md $(BIN)/python -m pytest tests/models/families

format: $(VENV)/.installed-dev      ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:                              ## remove what these commands made, runs excepted
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
