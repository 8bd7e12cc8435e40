.PHONY: demo test lint docs
PYTHON ?= python3
BIN = .venv/bin

demo: .venv/done
	$(BIN)/python -m dense_retrieval.run

test: .venv/done lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/done
	$(BIN)/mkdocs build --strict

.venv/done: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
