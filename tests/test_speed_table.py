"""The speed table of the README is what the benchmark wrote."""

import json
import re

from conftest import ROOT


def test_readme_states_the_measured_ratios():
    measured = json.loads((ROOT / "benchmarks" / "group_speed.json").read_text())
    table = (ROOT / "README.md").read_text().split("## Speed")[1].split("##")[0]
    ratios = re.findall(r"(\d+(?:\.\d+)?)×", table)
    expected = [f"{measured['scoring'][n]['ratio']:.1f}" for n in ("2", "4", "8", "16")]
    expected.append(f"{measured['training']['ratio']:.1f}")
    assert ratios == expected
    bounds = {"2": 1.8, "4": 3.2, "8": 5.5, "16": 7.5}
    assert all(measured["scoring"][n]["ratio"] >= bound for n, bound in bounds.items())
    assert measured["training"]["ratio"] >= 1.8
