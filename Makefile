# Everything runs in the checkout's own environment, .venv, which .ci/setup_venv.py makes on first use.
#   PYTHONS="..."     interpreters to try, in order          TORCH_INDEX=URL   package index to take torch from
PYTHONS ?= python3.11 python3.12 python3.13 python3.10 python3
TORCH_INDEX ?=
# Of both cores together.
FUZZ_SECONDS ?= 7200

BIN := .venv/bin
SET_UP = for python in $(PYTHONS); do \
	if $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then \
		exec $$python .ci/setup_venv.py --torch-index '$(TORCH_INDEX)' $(1); fi; done; \
	echo 'Python 3.10 to 3.13 is needed; none of these is one: $(PYTHONS). Name yours: make PYTHONS=/path/to/python3.12,' \
		'or install one (apt install python3 python3-venv; uv python install 3.12)' >&2; exit 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-slow test-cluster fuzz lint format clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup:  ## make .venv with what the program needs
	@$(call SET_UP,runtime)

setup-dev:  ## the same, with the development tools
	@$(call SET_UP,dev)

demo: setup  ## on a real graph with two workers: classes, retrieval, planted conflicts, with and without
	@$(BIN)/optimag demo

lint: setup-dev  ## style, types and the order of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# Two processes with a whole file of tests each in hand: more would start as many Ray sessions.
test: lint  ## lint, then all tests but the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-slow: setup-dev  ## the tests that train for minutes
	@$(BIN)/pytest -m "slow and not cluster"

test-cluster: setup-dev  ## the tests that start and kill clusters, hosts, workers and drivers
	@$(BIN)/pytest -m cluster

fuzz: setup-dev  ## look for an hour, on two cores, for damaged files and odd options that are not handled
	@$(BIN)/pytest tests/fuzz -m slow -n 2 --timeout=0 --fuzz-seconds=$(FUZZ_SECONDS)

format: setup-dev  ## bring the code into shape
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:  ## remove .venv and every cache
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
