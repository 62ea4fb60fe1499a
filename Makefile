# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
OP ?= rms_norm
OUT ?= build/measured

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint sweep generated bench measure tables clean

help: ## what one can do here
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the environment .venv (does nothing when it is up to date)
	@$(PYTHON) tools/setup_env.py

demo: setup ## the main job: specs → kernels for both chips → checks → cache → runtime, with a table
	@$(BIN)/python -m dsv4.generator.demo

test: setup lint ## the whole suite, on any machine (tests that need a GPU are skipped without one)
	@$(BIN)/dsv4-gen emit --check
	@$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

lint: setup ## formatter, linter, type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@cd .venv && bin/mypy --config-file ../pyproject.toml -p dsv4  # from where the installed dsv4, not the folder dsv4/, is found
	@$(BIN)/mypy benchmarks tools

sweep: setup ## the long sweeps that CI does not run
	@$(BIN)/python -m pytest -m sweep

generated: setup ## write generated/ anew from specs and templates
	@$(BIN)/dsv4-gen emit --write

bench: setup ## one operator beside its peers, on a GPU: make bench OP=fmha
	@$(BIN)/python -m benchmarks.$(OP)

measure: setup ## every bandwidth-bound operator beside its peers, on a GPU; goes on where it ended: make measure OUT=build/measured
	@$(BIN)/python -m benchmarks.all_operators --out $(OUT)

tables: setup ## the README's tables, from benchmarks/results
	@$(BIN)/python -m benchmarks.readme_tables --write

clean: ## everything that set-up and runs have made here
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
