# Each target makes .venv and installs what it needs; a second call installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PINS := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
PYTEST_ARGS ?= -n 2 --dist loadgroup

.PHONY: help demo reproduce test check loops oracles benchmarks format clean
help:
	@echo "make demo    train teacher and students on real digits, print the table, draw the pictures"
	@echo "make reproduce  train the whole study (hours), write docs/results.md; goes on where it stopped"
	@echo "make test    run every test, doctest and code block of the docs"
	@echo "make check   ruff, mypy and the import contracts"
	@echo "make loops   train in Trainer, accelerate, Lightning and with PEFT (own environment)"
	@echo "make oracles compare every loss with independent implementations (own environment)"
	@echo "make benchmarks  measure, and write the tables of docs/performance.md (an hour)"
	@echo "make format  let ruff rewrite the files"
	@echo "make clean   remove the environment and every output"

demo: $(VENV)/.demo
	$(RUN) examples/dide/train.py

reproduce: $(VENV)/.demo
	$(RUN) examples/dide/reproduce.py

test: $(VENV)/.test
	$(RUN) -m pytest $(PYTEST_ARGS)

check: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

loops: .venv-loops/.loops
	.venv-loops/bin/python -m pytest tests/loops plugins/distillkit-lightning

oracles: .venv-oracles/.oracles
	.venv-oracles/bin/python tests/oracles/compare.py

# Liger's chunked losses need torch alone, its package wants triton
benchmarks: $(VENV)/.benchmarks
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps liger-kernel==0.8.5
	$(RUN) benchmarks/attention_kl.py --write docs/performance.md
	$(RUN) benchmarks/linear_kl.py --write docs/performance.md
	$(RUN) benchmarks/distiller.py --write docs/performance.md

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-loops .venv-oracles build dist examples/dide/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements/%.txt $(PINS) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-loops/.loops: requirements/loops.txt $(PINS)
	test -x .venv-loops/bin/python || $(PYTHON) -m venv .venv-loops
	.venv-loops/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# their own requirements ask for GPU packages and torchvision; their losses need neither
.venv-oracles/.oracles: requirements/oracles.txt requirements/oracles-no-deps.txt $(PINS)
	test -x .venv-oracles/bin/python || $(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/oracles.txt
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/oracles-no-deps.txt
	@touch $@
