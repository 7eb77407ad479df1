# Two commands to begin with: `make demo` and `make test`. Everything runs from .venv, which the first target creates.
# Recipes use only Python and shell builtins: a machine with python3 and make is enough.

SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c "$(SUPPORTED)" 2>/dev/null && echo "$$p" && break; done)
PY := .venv/bin/python
INSTALLED := .venv/.installed
TE := transformer-engine==2.20.2

BUNDLE ?= bundles/swin_15m_sr.json
# A few workers, each on one thread: quicker than one process on every machine, and never more than memory allows.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

# make bench PARTS="quantize auprc" BENCH_ARGS="--manifest lgg --dataset_dir /data/kaggle_3m"; by default every part.
PARTS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env install demo test lint format types docs bundles audit bench clean

help: ## list the targets
	@$(or $(PYTHON),python3) -c 'import re; [print(f"  make {m[1]:9} {m[2]}") for line in open("Makefile") if (m := re.match(r"([a-z]+):.*## (.*)", line))]'

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "monai-fp4 needs Python 3.11 or newer, and none was found: install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv || { echo "python's venv module could not make .venv: on Debian and Ubuntu install python3-venv"; exit 1; }

env: .venv/bin/python ## create .venv, empty

# Transformer Engine's wheel is the tests' oracle; its own dependencies (CUDA) are not wanted here, hence --no-deps.
$(INSTALLED): .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing monai-fp4 and its tools into .venv; pip says nothing until it is done, in some minutes"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps $(TE)
	@: > $(INSTALLED)

install: $(INSTALLED) ## install the package and all tools in .venv

# MONAI warns of every config that it may run code, which a bundle of this checkout may.
demo: $(INSTALLED) ## train swin_15m_sr on phantom data, then say where to look
	@echo "$(PY) -m monai.bundle run --config_file $(BUNDLE)"
	@PYTHONWARNINGS="ignore:parsing config_file:UserWarning" $(PY) -m monai.bundle run --config_file $(BUNDLE)
	@$(PY) -c 'import json, sys; run = json.load(open(sys.argv[1]))["output_dir"]; print(f"\nThe run folder is {run}: metrics.json, model.pt, config.json and the TensorBoard events.\nTo watch it:  .venv/bin/tensorboard --logdir {run}")' $(BUNDLE)

test: $(INSTALLED) ## run the tests and every docstring's examples
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff: rules and format, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(INSTALLED) ## ruff: mend what it can, and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(INSTALLED) ## mypy on the package
	$(PY) -m mypy

docs: $(INSTALLED) ## build the documentation in site/, warnings as errors
	$(PY) -W ignore docs/gen_tables.py --check
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bundles: $(INSTALLED) ## check that bundles/ is what its template writes
	.venv/bin/monai-fp4 bundles check

# Not part of CI, which needs no network once it is installed.
audit: $(INSTALLED) ## ask PyPI which faults are known in the versions of constraints.txt
	$(PY) -m pip_audit -r constraints.txt --no-deps --disable-pip --strict $(AUDIT_ARGS)

bench: $(INSTALLED) ## measure everything beside its peers, write benchmarks/results and the picture
	$(PY) benchmarks/run.py --parts $(PARTS) $(BENCH_ARGS)

clean: ## remove .venv and everything that was built
	@$(or $(PYTHON),python3) -c 'import shutil; [shutil.rmtree(d, ignore_errors=True) for d in (".venv", "build", "dist", "site", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")]'
