# Each target makes .venv and installs what it needs; a second call installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
PINS := $(PROJECTS) constraints.txt requirements/unpinned.txt
PYTEST_ARGS ?= -n 2 --dist loadgroup
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo reproduce test test-gpu test-lowest test-newest check dist smoke packages loops oracles benchmarks documents fuzz test-machines coverage format clean pictures docs gallery test-versions test-these
help:
	@echo "make demo    train teacher and students on real digits, print the table, draw the pictures"
	@echo "make docs    build the documentation as a site: build/site/index.html (own environment)"
	@echo "make gallery train the models whose attention the site's gallery shows (minutes); make docs does it once"
	@echo "make reproduce  train the whole study (hours), write docs/results.md; goes on where it stopped"
	@echo "make pictures  train the study on drawings, write docs/pictures.md; goes on where it stopped (own environment)"
	@echo "make test    run every test, doctest and code block of the docs"
	@echo "make test-gpu  the tests where there is a GPU, its kernels first: GPU_PYTHON=... is a Python whose torch knows it"
	@echo "make check   ruff, mypy and the import contracts"
	@echo "make test-lowest  the tests with the lowest versions that pyproject.toml allows (own environment)"
	@echo "make test-newest  the tests with the newest versions (own environment)"
	@echo "make test-versions  both, and write what passed with which versions into docs/reference/versions.md"
	@echo "make test-these  the tests with versions of one's choice: THESE=\"torch==2.9.1\" (own environment)"
	@echo "make dist    build sdist and wheel of every distribution"
	@echo "make smoke   install the wheels in a fresh environment and run them from there"
	@echo "make packages  check the archives, and a user's script with mypy and pyright beside the wheels"
	@echo "make loops   train in Trainer, accelerate, Lightning, with PEFT, and the paper's example (own environment)"
	@echo "make oracles compare every loss with independent implementations (own environment)"
	@echo "make benchmarks  measure, and write the tables of the docs (an hour)"
	@echo "make documents  write the tables of the docs and the list of the public API"
	@echo "make test-machines  the tests in other locales, zones, folders, orders, writes docs/reference/machines.md"
	@echo "make coverage  which lines and branches no test runs; COVERAGE=tests/cache for some tests alone"
	@echo "make fuzz    10,000 damaged recipes, adapter files, command lines and caches each (an hour)"
	@echo "make format  let ruff rewrite the files"
	@echo "make clean   remove the environment and every output"

demo: $(VENV)/.demo
	$(RUN) examples/dide/train.py

# a warning is an error; a version beside those that are in build/site already
docs: .venv-docs/.docs build/gallery/gallery.json
	.venv-docs/bin/python -m tools.website --gallery build/gallery

gallery: .venv-docs/.docs
	.venv-docs/bin/python examples/dide/gallery.py --out build/gallery

# models that are trained already stay: `make gallery` trains them anew
build/gallery/gallery.json: | .venv-docs/.docs
	.venv-docs/bin/python examples/dide/gallery.py --out build/gallery

reproduce: $(VENV)/.demo
	$(RUN) examples/dide/reproduce.py

pictures: .venv-pictures/.pictures
	.venv-pictures/bin/python examples/pictures/build.py
	.venv-pictures/bin/python examples/pictures/study.py

test: $(VENV)/.test
	$(RUN) -m pytest $(PYTEST_ARGS)

# constraints.txt pins no torch for a GPU: which one fits is known to the machine that has it
GPU_PYTHON ?= $(RUN)
test-gpu:
	TRITON_INTERPRET=0 $(GPU_PYTHON) -m pytest tests/losses/tiled/test_kernels_on_gpu.py
	$(GPU_PYTHON) -m pytest $(PYTEST_ARGS)

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

# run where the script lies and not the package, so that the wheels are what a checker sees
packages: smoke .venv-wheels/.packages
	.venv-wheels/bin/twine check --strict dist/*
	.venv-wheels/bin/check-wheel-contents dist/*.whl
	mkdir -p build/typed && cp tools/typed_script.py build/typed/
	cd build/typed && $(CURDIR)/.venv-wheels/bin/mypy --strict typed_script.py
	cd build/typed && $(CURDIR)/.venv-wheels/bin/pyright --pythonpath $(CURDIR)/.venv-wheels/bin/python typed_script.py

# `smoke` makes the environment anew
.venv-wheels/.packages: requirements/packages.txt smoke
	.venv-wheels/bin/python $(INSTALL) -c constraints.txt -r $<

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

# the tests of COVERAGE, all unless said; lines of other processes count too
coverage: $(VENV)/.coverage
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest -p no:cacheprovider $(COVERAGE)
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

test-machines: $(VENV)/.test
	$(RUN) -m tools.machine_conditions

# files and command lines that are nearly right, or nothing at all
FUZZ ?= 10000
fuzz: $(VENV)/.test
	DISTILLKIT_FUZZ=$(FUZZ) $(RUN) -m pytest tests/fuzz

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-wheels .venv-loops .venv-oracles build dist examples/dide/out examples/loops/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage examples/pictures/out .venv-pictures .venv-docs .venv-these

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

.venv-docs/.docs: requirements/docs.txt $(PINS)
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(INSTALL) -r $<
	@touch $@

.venv-loops/.loops: requirements/loops.txt $(PINS)
	test -x .venv-loops/bin/python || $(PYTHON) -m venv .venv-loops
	.venv-loops/bin/python $(INSTALL) -r $<
	@touch $@

.venv-pictures/.pictures: requirements/pictures.txt requirements/pictures-no-deps.txt $(PINS)
	test -x .venv-pictures/bin/python || $(PYTHON) -m venv .venv-pictures
	.venv-pictures/bin/python $(INSTALL) -r requirements/pictures.txt
	.venv-pictures/bin/python $(INSTALL) --no-deps -r requirements/pictures-no-deps.txt
	@touch $@

# their own requirements ask for GPU packages and torchvision; their losses need neither
.venv-oracles/.oracles: requirements/oracles.txt requirements/oracles-no-deps.txt $(PINS)
	test -x .venv-oracles/bin/python || $(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python $(INSTALL) -r requirements/oracles.txt
	.venv-oracles/bin/python $(INSTALL) --no-deps -r requirements/oracles-no-deps.txt
	@touch $@
