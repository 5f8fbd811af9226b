# A fresh machine needs python3 (3.11 or newer) with venv and pip. The first `make` of any target makes .venv and
# installs the package into it; with PyTorch's CUDA libraries that is a download of about 6 GB, some minutes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all lint docs docs-serve bench newest

install: $(STAMP)

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt
	@echo "Installing rs-rlhf into $(VENV) (the first time about 6 GB, some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("rs-rlhf needs Python 3.11 or newer, PYTHON=<path> picks one" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
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

# The site, in build/site; a broken link or anchor is an error. Nothing is fetched while it is built.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "The site is in build/site"

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

bench: install
	$(BIN)/python benchmarks/group_speed.py --rounds 3

# The newest versions of everything, beyond the bounds of setup.cfg too, in an environment of their own.
NEWEST := .venv-newest
NEWEST_PIP := $(NEWEST)/bin/python -m pip
newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST_PIP) install --quiet --upgrade -e ".[dev]"
	$(NEWEST_PIP) install --quiet --upgrade trl transformers accelerate torch torchvision peft datasets deepspeed
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile
	@echo "The tests pass. Widen the bounds in setup.cfg if they must be, and write constraints.txt again below its head:"
	@echo "  $(NEWEST_PIP) freeze --all --exclude pip --exclude-editable"
