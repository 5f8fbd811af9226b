# A fresh machine needs python3 (3.11 or newer) with venv and pip. The first `make` of any target makes .venv and
# installs the package into it; with PyTorch's CUDA libraries that is a download of about 6 GB, some minutes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all lint bench

install: $(STAMP)

$(STAMP): setup.cfg setup.py pyproject.toml
	@echo "Installing rs-rlhf into $(VENV) (the first time about 6 GB, some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("rs-rlhf needs Python 3.11 or newer, PYTHON=<path> picks one" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: install
	$(BIN)/rs-rlhf demo --output_dir demo_output

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What `make test` leaves out, being long: real launchers and processes, whole trainings.
test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/group_speed.py --rounds 3
