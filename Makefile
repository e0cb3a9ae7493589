# Two commands are enough: `make demo` and `make test`. Both build the environment the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# By content, not by time: a fresh checkout with the same pyproject.toml finds its environment finished.
INSTALLED := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)
UNFINISHED := $(VENV)/.unfinished
# MONAI Label lies on top of the environment, in one of its own: its pins would take NumPy 2 away from the bundle.
LABEL := $(VENV)-label
LABEL_NEEDS := scripts/monailabel/requirements.txt scripts/monailabel/requirements-no-deps.txt
LABEL_INSTALLED := $(LABEL)/.installed-$(shell cat pyproject.toml $(LABEL_NEEDS) | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help venv venv-label demo test test-ranks test-slow test-label test-viewer check bench chaos clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## build the environment in .venv (once; about 6 GB)

# A build that was interrupted leaves the mark `.unfinished` and is thrown away by the next one; an environment
# that somebody else made (`make VENV=...`) is only added to, never emptied. Debian's python3 comes without the
# part of venv that installs pip: there the pip beside python3 does it.
$(INSTALLED):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python must be 3.11 or newer, got %d.%d; make PYTHON=/path/to/python3.11 ..." % v[:2])'
	@if [ -e "$(UNFINISHED)" ]; then rm -rf "$(VENV)"; fi
	@if [ ! -e "$(VENV)" ]; then mkdir -p "$(VENV)" && touch "$(UNFINISHED)"; fi
	$(PYTHON) -m venv "$(VENV)" || { $(PYTHON) -m venv --without-pip "$(VENV)" && \
	  $(PYTHON) -m pip --python "$(BIN)/python" install pip; }
	$(BIN)/python -m pip install ".[dev]"
	@rm -rf build ctpa_vqgan.egg-info "$(VENV)"/.installed-* "$(UNFINISHED)" && touch "$@"

demo: $(INSTALLED)  ## train on the embedded CT crop and reconstruct it (5 minutes on 2 cores)
	$(BIN)/python -m scripts.demo

test: $(INSTALLED)  ## run all tests, in two processes of one core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

$(LABEL_INSTALLED): $(INSTALLED)
	rm -rf "$(LABEL)"
	$(BIN)/python -m venv --without-pip "$(LABEL)"
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(LABEL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bundle_environment.pth"
	$(LABEL)/bin/python -m pip install -r scripts/monailabel/requirements.txt
	$(LABEL)/bin/python -m pip install --no-deps -r scripts/monailabel/requirements-no-deps.txt
	@touch "$@"

venv-label: $(LABEL_INSTALLED)  ## build MONAI Label's environment in .venv-label (once; 0.7 GB more)

test-ranks: $(INSTALLED)  ## kill, stop and restart runs of several processes (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ranks

test-slow: $(INSTALLED)  ## run the slowest tests of one process: export to ONNX, diffusion, resume (3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-label: $(LABEL_INSTALLED)  ## run a real MONAI Label server against its tests (1 minute)
	$(LABEL)/bin/python -m pytest -q tests/scripts/monailabel

test-viewer: $(INSTALLED)  ## open the viewer's pages in a headless Chromium (1 minute; skipped where there is none)
	$(BIN)/python -m pytest -q -rs -m viewer tests/bundle/viewing

check: $(INSTALLED)  ## lint, format, types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(INSTALLED)  ## seconds per patch and peak memory on this machine
	$(BIN)/python -m scripts.developer.benchmark

chaos: $(INSTALLED)  ## kill a small run at 20 random moments, resume it, compare with an uninterrupted one
	$(BIN)/python -m scripts.developer.chaos

clean:  ## remove caches and build products; keeps the environment, models and outputs
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find bundle transforms scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
