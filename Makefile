# make demo   install, then the main job on the embedded checkpoint
# make test   install what tests need, then run them
# make gpu    install what tests need, then run those for machines with a GPU
# make check  lint, types, import rules

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

.PHONY: demo test gpu check clean

demo: $(VENV)/.installed
	$(BIN)/lance-workbench demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not slow"

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 8 -m gpu tests/core/runtime tests/kernels

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[vae]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[vae,video,triton,coreml,mlx,dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
