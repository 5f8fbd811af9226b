"""Declarations of benchmarks: every one loads, and what cannot be meant is refused by its key."""

import json
import re

import pytest
from helpers import ROOT
from helpers.benchmark_files import draw, write

from rs_rlhf import declarations
from rs_rlhf.errors import DeclarationError
from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.reader import read_benchmark


@pytest.mark.parametrize("name", declarations.names("eval"))
def test_every_declaration_loads_and_says_how_it_is_used(name):
    benchmark = load_benchmark(name)
    text = (ROOT / "eval" / f"{name}.yaml").read_text()
    assert text.startswith("# rs-rlhf eval --model ") and re.search(rf"--task {name}\s", text)
    assert f"`{name}`" in (ROOT / "eval" / "README.md").read_text() or name.endswith("-authors")
    assert set(benchmark.core_types) <= set(benchmark.types) and len(set(benchmark.choices)) == len(benchmark.choices)
    for figure in benchmark.published:
        assert 0 < figure["value"] <= 100 and re.search(r"arXiv|github", figure["source"])


def test_the_example_of_the_readme_loads_and_reads(tmp_path):
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "eval" / "README.md").read_text(), re.DOTALL)
    benchmark = load_benchmark(str(write(tmp_path / "my-harbours.yaml", block[1])))
    row = re.search(r"`(\{\"id\".*?\})`", (ROOT / "eval" / "README.md").read_text())[1]
    draw(tmp_path / "1.png")
    second = {**json.loads(row), "id": "h2", "type": "count", "solution": 3}
    data = write(tmp_path / "harbours.jsonl", f"{row}\n{json.dumps(second)}\n")
    rows = read_benchmark(benchmark, data)
    assert benchmark.name == "my-harbours" and [row.reference for row in rows] == ["yes", "3"]
    assert [row.id for row in read_benchmark(benchmark, data, core_only=True)] == ["h1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("types: [yes, no]", "types holds True, expected texts; write it in quotes"),
        ("choices: urban", "choices is 'urban', expected a list"),
        ("templates: [1]", "templates holds 1, expected texts"),
        ("core_types: [null]", "core_types holds None"),
        ("class_names: {1: port}", "class_names holds 1, expected texts; write it in quotes"),
        ("class_names: [port]", "class_names is ['port'], expected names"),
        ("numbers: rsvqa", "numbers is 'rsvqa'; did you mean 'rsvqa_lr'?"),
        ("box_unit: '0-1000'", "take the key out, write {box_request} in the prompt"),
        ("max_new_tokens: 0", "max_new_tokens is 0, expected a whole number"),
        ("max_new_tokens: 8.5", "max_new_tokens is 8.5"),
        ("metric_version: true", "metric_version is True"),
        ("source: 2503.00743", "source is 2503.00743, expected a text"),
        ("published: [{model: m, metric: top1, value: '64', source: s}]", "has the value '64', expected a number"),
        ("published: [64]", "published holds 64"),
        ("name: a/b", "the benchmark's name is 'a/b'"),
        ("path: ../d", "path is '../d', expected one below the data root"),
        ("annotations: /etc/rows.jsonl", "annotations is '/etc/rows.jsonl', expected one below path"),
        ("images: ../pictures", "images is '../pictures', expected one below path"),
        ("layout: row", "layout is 'row'; did you mean 'rows'?"),
        ("class_names: {a: b}", "the layout rows does not read class_names, only split, annotations, images"),
        ("layout: images\nannotations: a.json", "the layout images does not read annotations"),
        ("layout: images\nimages: i", "the layout images does not read images"),
        ("layout: authors\nsplit: test", "the layout authors does not read split"),
        ("layout: lhrs_bench\nsplit: test", "the layout lhrs_bench does not read split"),
        ("layout: vrsbench\nsplit: test", "the layout vrsbench does not read split"),
        ("layout: preferences\nprompt: Why?", "the layout preferences does not read prompt"),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused(tmp_path, line, said):
    values = {"title": "t", "task": "vqa", "layout": "rows", "path": "d", "source": "s"}
    lines = [f"{key}: {value}" for key, value in values.items() if f"\n{key}:" not in f"\n{line}"]
    with pytest.raises(DeclarationError) as error:
        load_benchmark(str(write(tmp_path / "mine.yaml", "\n".join([*lines, line]))))
    assert error.value.key == line.splitlines()[-1].split(":")[0]
    assert said in str(error.value) and "mine.yaml" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DeclarationError, match="my benchmark.yaml: the benchmark's name is 'my benchmark'"):
        load_benchmark(str(write(tmp_path / "my benchmark.yaml", "\n".join(f"{k}: {v}" for k, v in values.items()))))
