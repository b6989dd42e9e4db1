# The accelerator to install for: cpu, cuda12, cuda13 or tpu. Default: that of the existing .venv, or cpu.
ACCELERATORS := cpu cuda12 cuda13 tpu
ACCELERATOR ?= $(or $(firstword $(patsubst .venv/.installed-%,%,$(wildcard .venv/.installed-*))),cpu)
ifneq ($(words $(ACCELERATOR))-$(words $(filter $(ACCELERATORS),$(ACCELERATOR))),1-1)
  $(error ACCELERATOR is '$(ACCELERATOR)'; expected one of: $(ACCELERATORS))
endif

# .venv is created by the first of these that is Python 3.11 to 3.14 and has venv. If PYTHON is given on the command
# line (make test PYTHON=python3.13), an existing .venv of another version is rebuilt.
PYTHON ?= python3.14 python3.13 python3.12 python3.11 python3
EXTRA := $(if $(filter cpu,$(ACCELERATOR)),,[$(ACCELERATOR)])
TEST_EXTRA := $(if $(filter cpu,$(ACCELERATOR)),[test],[$(ACCELERATOR),test])
INSTALLED := .venv/.installed-$(ACCELERATOR)
TEST_INSTALLED := .venv/.test-installed-$(ACCELERATOR)
BERT_JAX := .venv/bin/python -m bert_jax
MKDOCS := NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs

IS_USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
ifneq ($(origin PYTHON),file)
  VERSION := import sys; print(*sys.version_info[:2], sep=".")
  GIVEN := $(shell for python in $(PYTHON); do \
    if "$$python" -c '$(IS_USABLE)' 2>/dev/null; then "$$python" -c '$(VERSION)'; break; fi; done)
  PRESENT := $(if $(wildcard .venv/bin/python),$(shell .venv/bin/python -c '$(VERSION)'))
  OTHER_PYTHON := $(if $(GIVEN),$(if $(PRESENT),$(filter-out $(GIVEN),$(PRESENT))))
endif

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install pretrain bench test test-fast test-slow test-newest test-plan test-compat test-slurm test-soak lint docs
.PHONY: format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target text; do \
	  printf '  make %-12s %s\n' "$$target" "$$text"; done

install: $(INSTALLED) ## create .venv (ACCELERATOR=cpu|cuda12|cuda13|tpu)

.PHONY: remove-other-python
remove-other-python:
	@echo 'Removing .venv: it has Python $(OTHER_PYTHON), not the requested $(GIVEN)'
	@rm -rf .venv

# One .venv serves one accelerator, because jax would load the plugins of two together.
$(INSTALLED): pyproject.toml requirements.txt $(if $(OTHER_PYTHON),remove-other-python)
	@for stamp in .venv/.installed-*; do \
	  if [ -e "$$stamp" ] && [ "$$stamp" != '$@' ]; then echo "Removing .venv: it was created for $${stamp##*-}"; rm -rf .venv; fi; \
	done
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON); do \
	    if "$$python" -c '$(IS_USABLE)' 2>/dev/null; then \
	      exec "$$python" -m venv --clear .venv; \
	    fi; \
	  done; \
	  echo 'Found no Python 3.11 to 3.14 with venv among: $(PYTHON)'; \
	  echo '  fix: install one (Debian, Ubuntu: apt-get install python3-venv), or name one: make install PYTHON=/path/to/python3'; \
	  exit 1; \
	fi
	@echo 'Installing into .venv for $(ACCELERATOR) (about a minute) …'
	@.venv/bin/python -m pip install --quiet --editable '.$(EXTRA)'
	@touch $@

$(TEST_INSTALLED): $(INSTALLED)
	@echo 'Installing the test requirements into .venv (PyTorch is large: a few minutes) …'
	@.venv/bin/python -m pip install --quiet --editable '.$(TEST_EXTRA)'
	@touch $@

pretrain: install ## train a small model on Python's own documentation, start to finish, in runs/demo
	$(BERT_JAX) prepare --config=configs/demo.py
	$(BERT_JAX) train --config=configs/demo.py --workdir=runs/demo
	@if [ runs/demo/export/proof.json -nt runs/demo/metrics.jsonl ]; then \
	  echo 'runs/demo is already evaluated and exported: see runs/demo/report.html'; \
	else \
	  $(BERT_JAX) evaluate --workdir=runs/demo && \
	  $(BERT_JAX) export --workdir=runs/demo --output=runs/demo/export && \
	  $(BERT_JAX) report --workdir=runs/demo; \
	fi
	$(BERT_JAX) fill-mask --model=runs/demo/export \
	  'Return a [MASK] of the given array.' \
	  'the [MASK] of the file to open.' \
	  'if the value is not [MASK], an error is raised.' \
	  'The default [MASK] is None.' \
	  'This function returns the [MASK] of elements in the list.'

bench: $(TEST_INSTALLED) ## compare the speed of a step with PyTorch on this machine (ten minutes)
	JAX_PLATFORMS=cpu .venv/bin/python -m benchmarks.speed

# Two processes share the test files, so that each module is set up once. The slowest tests are printed.
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=25
FAST := -m 'not (processes or compiles or slow or slurm or plan or compat or soak)'
IN_ONE_PROCESS := -m 'not (processes or slow or slurm or plan or compat or soak)'

# For Python 3.12 and newer, pip's default index has only PyTorch with CUDA, which is several GB. The tests need only the
# CPU build of PyTorch's own index: PIP_EXTRA_INDEX_URL=THAT_INDEX make test PYTHON=python3.13
test: $(TEST_INSTALLED) ## run the tests, on the CPU
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest $(PARALLEL)

test-fast: $(TEST_INSTALLED) ## run the tests that start no process and compile no train step
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest $(PARALLEL) $(FAST)

test-slow: $(TEST_INSTALLED) ## run the longest tests, which repeat others on more meshes and models
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest $(PARALLEL) -m slow

# Uses the newest jax, which does not support Python 3.11, and skips the tests that compare with PyTorch.
NEWEST_PYTHON ?= python3.13
test-newest: ## run the tests that start no process on NEWEST_PYTHON (python3.13), in .venv-newest
	@if ! [ .venv-newest/.installed -nt pyproject.toml ]; then \
	  echo 'Installing into .venv-newest …'; \
	  $(NEWEST_PYTHON) -m venv --clear .venv-newest && \
	  .venv-newest/bin/python -m pip install --quiet --editable '.[test-without-torch]' && \
	  touch .venv-newest/.installed; \
	fi
	WITHOUT_TORCH=1 JAX_PLATFORMS=cpu .venv-newest/bin/python -m pytest $(PARALLEL) $(IN_ONE_PROCESS)

# Uses a separate environment, because jax would look for the devices of installed compilers whenever it starts.
PLAN_EXTRAS ?= plan-tpu,plan-gpu
test-plan: $(INSTALLED) ## run the tests that compile for absent TPUs and GPUs (PLAN_EXTRAS=plan-tpu: TPUs only)
	@if ! [ .venv-plan/.installed-$(PLAN_EXTRAS) -nt pyproject.toml ]; then \
	  echo 'Installing the compilers into .venv-plan ($(PLAN_EXTRAS)) …'; \
	  .venv/bin/python -m venv .venv-plan && \
	  .venv-plan/bin/python -m pip install --quiet --editable '.[$(PLAN_EXTRAS)]' 'pytest>=9,<10' && \
	  touch .venv-plan/.installed-$(PLAN_EXTRAS); \
	fi
	WITHOUT_TORCH=1 JAX_PLATFORMS=cpu .venv-plan/bin/python -m pytest -m plan tests/plan

# The first release of transformers with ModernBERT, in its own environment; it works with the torch of the other tests.
COMPAT_INSTALLED := .venv-compat/.installed-4.48.0
$(COMPAT_INSTALLED): | $(INSTALLED)
	@echo 'Installing transformers 4.48.0 into .venv-compat (PyTorch is large: a few minutes) …'
	@rm -rf .venv-compat
	@.venv/bin/python -m venv .venv-compat
	@.venv-compat/bin/python -m pip install --quiet transformers==4.48.0 torch==2.13.0
	@touch $@

test-compat: $(TEST_INSTALLED) $(COMPAT_INSTALLED) ## open exports with transformers 4.48, in .venv-compat
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest -m compat tests/compat

test-slurm: $(TEST_INSTALLED) ## run the tests that start a real SLURM on this machine (apt-get install slurm-wlm munge)
	.venv/bin/python -m pytest -m slurm

# SOAK_TRIES=N injects each fault N times; SOAK_SEED=S changes the moments.
test-soak: $(TEST_INSTALLED) ## inject faults; prints a row per fault: tries, outcome, time to recover, steps lost
	.venv/bin/python -m pytest -m soak tests/soak

lint: $(TEST_INSTALLED) ## check style, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/ty check
	$(MKDOCS) build --strict --quiet

docs: $(TEST_INSTALLED) ## build the documentation into site/ (make docs SERVE=1 serves it while you write)
	$(MKDOCS) $(if $(SERVE),serve,build --strict --quiet)

# Reproducible: releases after LOCK_DAY are ignored.
LOCK_DAY ?= $(shell date -u +%F)
UV_VERSION := 0.13.9
UV_COMPILE := .venv-lock/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
  --no-annotate --upgrade --exclude-newer $(LOCK_DAY) --custom-compile-command 'make lock LOCK_DAY=$(LOCK_DAY)'
lock: ## rewrite requirements.lock and requirements-build.lock (LOCK_DAY=YYYY-MM-DD: with the releases up to that day)
	@if ! .venv-lock/bin/uv --version 2>/dev/null | grep -qF '$(UV_VERSION)'; then \
	  python3 -m venv --clear .venv-lock && .venv-lock/bin/python -m pip install --quiet uv==$(UV_VERSION); \
	fi
	$(UV_COMPILE) requirements.txt --output-file requirements.lock
	printf 'setuptools>=77\nwheel\n' | $(UV_COMPILE) - --output-file requirements-build.lock

format: $(TEST_INSTALLED) ## fix style and formatting where possible
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove .venv and caches; runs/ and corpora/ stay
	rm -rf .venv .venv-newest .venv-plan .venv-compat .venv-lock build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find bert_jax benchmarks configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
