# From a bare checkout, with only make and Python >= 3.10: `make demo`. `make help` tells the rest.

PYTHON ?= python3
# Words for every `pip install`, such as another index.
PIP_FLAGS ?=

VENV := .venv
PY := $(VENV)/bin/python
# Wheels only, so that no compiler is needed; the project itself is built by the pinned setuptools in the environment.
PIP := $(PY) -m pip install --disable-pip-version-check --only-binary=:all: -c constraints.txt $(PIP_FLAGS)
FROM := pyproject.toml constraints.txt

# Two pips in one environment would undo each other's work.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test check faults soak bench bench-gpu clean

help:
	@echo 'make demo    install into $(VENV), then see the data and train a small model'
	@echo 'make test    the checks, then all tests'
	@echo 'make check   format, lint, types, the direction of imports, and the packages that are installed'
	@echo 'make faults  the long tests of machines that fail: Ctrl-C from outside, two runs at once, ASCII-only systems,'
	@echo '             and kill -9 twenty times in a run of each engine'
	@echo 'make soak    2,000 steps of a tiny model: memory, open files and the time of a step may not grow; STEPS=300 takes fewer'
	@echo 'make bench   every script in benchmarks/, against TRL (Python >= 3.11); QUICK=1 only tries them,'
	@echo '             RECORD=1 keeps the results and writes them into docs/performance.md'
	@echo 'make bench-gpu   training steps and the LM head on a CUDA GPU, against TRL; MINUTES=9 stops in time and goes on'
	@echo '             the next time, RECORD=1 writes the results into docs/performance.md'
	@echo 'make clean   remove the environment and all caches'
	@echo ''
	@echo 'PYTHON=python3.12   takes another Python; run `make clean` first where $(VENV) exists'
	@echo 'PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"'
	@echo '                    takes the CPU build of torch: on Linux, PyPI'"'"'s brings several GB of CUDA'
	@echo '                    packages, whether there is a GPU or not'

demo: $(VENV)/.run
	$(VENV)/bin/honed demo

check: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m pip check
	$(PY) -m pytest -q tests/test_pins.py

# Two tests of a module may share what its fixtures made, so a module stays in one process.
test: check
	$(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile

# Results are dated, and stand beside those of earlier days.
RESULT = benchmarks/results/$(1)-$(shell date +%F).json

faults: $(VENV)/.dev
	HONED_FAULTS=1 $(PY) -m pytest tests/faults
	rm -f $(call RESULT,kills)
	HONED_FAULTS=1 HONED_KILLS_OUT=$(call RESULT,kills) $(PY) -m pytest tests/train -k killed_at_random

STEPS ?= 2000
soak: $(VENV)/.dev
	$(PY) tests/soak/run.py --steps $(STEPS) --out $(call RESULT,soak)

BENCHMARKS := attention data_preparation generation gemm_share growth head lora moe_dispatch plan_accuracy shared_prefix startup training_step
# RECORD=1 keeps what was measured, named by date, and writes it into docs/performance.md.
bench: $(VENV)/.bench
	@for name in $(BENCHMARKS); do \
	  echo "== benchmarks/$$name.py"; \
	  out=benchmarks/results/$$(echo $$name | tr _ -)-cpu-1thread-$$(date +%F).json; \
	  $(if $(RECORD),rm -f $$out;) \
	  CUDA_VISIBLE_DEVICES= $(PY) benchmarks/$$name.py $(if $(QUICK),--quick) $(if $(RECORD),--out $$out) || exit 1; \
	done
	$(if $(RECORD),$(PY) benchmarks/plot_growth.py $$(ls benchmarks/results/growth-*.json | tail -1))
	$(if $(RECORD),$(PY) benchmarks/tables.py)

# With MINUTES a quarter of them are the head's, so that every call brings both further.
GPU_PY := $(if $(AS_IS),$(PYTHON),$(PY))
bench-gpu: $(if $(AS_IS),,$(VENV)/.bench)
	@left=0; \
	$(GPU_PY) benchmarks/head.py $(if $(MINUTES),--minutes $$(( $(MINUTES) / 4 ))) \
	  $(if $(QUICK),--quick,--out $(call RESULT,head-gpu)) || left=1; \
	$(GPU_PY) benchmarks/gpu_training.py $(if $(MINUTES),--minutes $$(( $(MINUTES) - $(MINUTES) / 4 ))) \
	  $(if $(QUICK),--quick,--out $(call RESULT,gpu-training-gpu)) || left=1; \
	$(if $(RECORD),$(GPU_PY) benchmarks/tables.py || left=1;) \
	exit $$left

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in stages; a stamp is written only after its stage succeeded. While pip runs there is no stamp but
# .busy. Found again, it tells that a stage was cut short (Ctrl-C, no network, full disk): all is then done anew in an
# empty environment, from pip's cache.
BEGIN = @rm -f $(VENV)/.made $(VENV)/.run $(VENV)/.dev $(VENV)/.bench; touch $(VENV)/.busy
DONE = @rm $(VENV)/.busy; touch $(VENV)/.made

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'There is no $(PYTHON) here. Install Python >= 3.10, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "honed needs Python >= 3.10; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo '$(PYTHON) cannot make environments. On Debian or Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(if $(wildcard $(VENV)/.busy),--clear) $(VENV)
	$(BEGIN)
	$(PIP) -q pip setuptools
	$(DONE)

$(VENV)/.run: $(FROM) | $(VENV)/.made
	$(BEGIN)
	$(PIP) --no-build-isolation -e .
	$(DONE) $@

$(VENV)/.dev: $(FROM) | $(VENV)/.made
	$(BEGIN)
	$(PIP) --no-build-isolation -e '.[dev]'
	$(DONE) $(VENV)/.run $@

$(VENV)/.bench: $(FROM) | $(VENV)/.made
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'The benchmarks compare with a TRL that needs Python >= 3.11: make clean bench PYTHON=python3.12' >&2; exit 1; }
	$(BEGIN)
	$(PIP) --no-build-isolation -e '.[bench]'
	$(DONE) $(VENV)/.run $@
