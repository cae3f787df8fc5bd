# Each target makes .venv and installs what it needs; a second call installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
PINS := $(PROJECTS) constraints.txt requirements/unpinned.txt
PYTEST_ARGS ?= -n 2 --dist loadgroup
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo reproduce test test-gpu test-lowest test-newest test-versions test-these check dist smoke loops oracles benchmarks documents format clean
help:
	@echo "make demo    train teacher and students on real digits, print the table, draw the pictures"
	@echo "make reproduce  train the whole study (hours), write docs/results.md; goes on where it stopped"
	@echo "make test    run every test, doctest and code block of the docs"
	@echo "make test-gpu  the tests of the kernels on a GPU, in an environment that has torch for it: GPU_PYTHON=..."
	@echo "make check   ruff, mypy and the import contracts"
	@echo "make test-lowest  the tests with the lowest versions that pyproject.toml allows (own environment)"
	@echo "make test-newest  the tests with the newest versions (own environment)"
	@echo "make test-versions  both, and write what passed with which versions into docs/reference/versions.md"
	@echo "make test-these  the tests with versions of one's choice: THESE=\"torch==2.9.1\" (own environment)"
	@echo "make dist    build sdist and wheel of every distribution"
	@echo "make smoke   install the wheels in a fresh environment and run them from there"
	@echo "make loops   train in Trainer, accelerate, Lightning, with PEFT, and the paper's example (own environment)"
	@echo "make oracles compare every loss with independent implementations (own environment)"
	@echo "make benchmarks  measure, and write the tables of the docs (an hour)"
	@echo "make documents  write the tables of the docs and the list of the public API"
	@echo "make format  let ruff rewrite the files"
	@echo "make clean   remove the environment and every output"

demo: $(VENV)/.demo
	$(RUN) examples/dide/train.py

reproduce: $(VENV)/.demo
	$(RUN) examples/dide/reproduce.py

test: $(VENV)/.test
	$(RUN) -m pytest $(PYTEST_ARGS)

# constraints.txt pins no torch for a GPU: which one fits is known to the machine that has it
GPU_PYTHON ?= $(RUN)
test-gpu:
	TRITON_INTERPRET=0 $(GPU_PYTHON) -m pytest tests/losses/tiled/test_kernels_on_gpu.py

check: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-lowest: .venv-lowest/.test
	.venv-lowest/bin/python -m pytest $(PYTEST_ARGS)

test-newest: .venv-newest/.test
	.venv-newest/bin/python -m pytest $(PYTEST_ARGS)

# both run, whatever the first one says, and the page tells of both
test-versions: .venv-lowest/.test .venv-newest/.test $(VENV)/.test
	.venv-lowest/bin/python -m tools.versions run lowest -- $(PYTEST_ARGS); lowest=$$?; \
	.venv-newest/bin/python -m tools.versions run newest -- $(PYTEST_ARGS); newest=$$?; \
	$(RUN) -m tools.versions write; \
	test $$lowest -eq 0 && test $$newest -eq 0

# any versions that fit together: make test-these THESE="torch==2.9.1 transformers==5.24.0"
THESE ?= torch
test-these:
	test -x .venv-these/bin/python || $(PYTHON) -m venv .venv-these
	.venv-these/bin/python $(INSTALL) $(THESE) -r requirements/unpinned.txt
	mkdir -p build
	.venv-these/bin/python -m tools.versions run these --lines build/versions.jsonl -- $(PYTEST_ARGS)

# a wheel is built from its sdist: what the sdist lacks is seen here
dist: $(VENV)/.test
	rm -rf dist
	for folder in $(dir $(PROJECTS)); do \
	  (cd $$folder && $(CURDIR)/$(VENV)/bin/hatchling build -t sdist -d $(CURDIR)/dist) || exit 1; \
	done
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist dist/*.tar.gz

# -I keeps this folder off the path, so that the installed files are the ones that run
smoke: dist
	rm -rf .venv-wheels
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python $(INSTALL) -c constraints.txt dist/distillkit-*.whl dist/distillkit_transformers-*.whl
	.venv-wheels/bin/python -I tools/smoke.py

loops: .venv-loops/.loops
	.venv-loops/bin/python -m pytest tests/loops tests/paper plugins/distillkit-lightning

oracles: .venv-oracles/.oracles
	.venv-oracles/bin/python -m tools.compare_libraries

documents: $(VENV)/.test
	$(RUN) -m tools.document_tables
	$(RUN) -m tools.inspected_page
	$(RUN) -m tools.family_table
	$(RUN) -m tools.versions write
	$(RUN) -m tools.public_api --write

# Liger's chunked losses need torch alone, its package wants triton
benchmarks: $(VENV)/.benchmarks
	$(RUN) $(INSTALL) --no-deps liger-kernel==0.8.5
	$(RUN) benchmarks/attention_kl.py --json build/attention_kl.json
	$(RUN) benchmarks/linear_kl.py --json build/linear_kl.json
	$(RUN) benchmarks/response_memory.py --json build/response_memory.json
	$(RUN) benchmarks/distiller.py --json build/distiller.json
	$(RUN) benchmarks/signal_cache.py --json build/signal_cache.json
	$(RUN) benchmarks/cached_epoch.py --json build/cached_epoch.json
	$(RUN) -m tools.performance_tables build/attention_kl.json build/linear_kl.json build/response_memory.json build/distiller.json build/signal_cache.json build/cached_epoch.json

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-these .venv-wheels .venv-loops .venv-oracles build dist examples/dide/out examples/loops/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements/%.txt $(PINS) | $(VENV)/bin/python
	$(RUN) $(INSTALL) -r $<
	@touch $@

.venv-lowest/.test: tools/lowest.py $(PINS)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python tools/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python $(INSTALL) -c .venv-lowest/constraints.txt -r requirements/unpinned.txt
	@touch $@

.venv-newest/.test: $(PINS)
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager -r requirements/unpinned.txt
	@touch $@

.venv-loops/.loops: requirements/loops.txt $(PINS)
	test -x .venv-loops/bin/python || $(PYTHON) -m venv .venv-loops
	.venv-loops/bin/python $(INSTALL) -r $<
	@touch $@

# their own requirements ask for GPU packages and torchvision; their losses need neither
.venv-oracles/.oracles: requirements/oracles.txt requirements/oracles-no-deps.txt $(PINS)
	test -x .venv-oracles/bin/python || $(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python $(INSTALL) -r requirements/oracles.txt
	.venv-oracles/bin/python $(INSTALL) --no-deps -r requirements/oracles-no-deps.txt
	@touch $@
