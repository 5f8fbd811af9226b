"""Pinned versions: all that `setup.cfg` names is in `constraints.txt`, within its bounds."""

from configparser import ConfigParser

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
BASE = [Requirement(line) for line in SETUP["options"]["install_requires"].strip().splitlines()]
EXTRAS = {name: text.strip().splitlines() for name, text in SETUP["options.extras_require"].items()}
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}


def test_constraints_pin_one_version_each_and_no_place():
    assert len(PINS) == len(LINES) > 100
    assert all(version and "/" not in line for line, version in zip(LINES, PINS.values(), strict=True))


@pytest.mark.parametrize("requirement", [*BASE, *map(Requirement, sorted(set(sum(EXTRAS.values(), []))))], ids=str)
def test_what_is_required_is_pinned_within_its_bounds(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)], prereleases=True)


@pytest.mark.parametrize("name", ["trl", "transformers", "accelerate", "torch", "peft", "datasets", "deepspeed"])
def test_what_is_subclassed_or_called_privately_is_bounded_on_both_sides(name):
    (requirement,) = (entry for entry in BASE if entry.name == name)
    assert {bound.operator for bound in requirement.specifier} == {">=", "<"}


def test_make_install_takes_the_pinned_versions():
    makefile = (ROOT / "Makefile").read_text()
    install = next(line for line in makefile.splitlines() if "pip install" in line and "$(BIN)" in line)
    assert "-c constraints.txt" in install
