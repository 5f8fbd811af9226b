"""Scoring as a stage of Ray Data, on a real local cluster of two nodes, one of which is killed."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from PIL import Image

from rs_rlhf.cli.main import run
from rs_rlhf.curation import ray as curation_ray
from rs_rlhf.curation.shards import read_scores

pytest.importorskip("ray", reason="Ray is an extra: pip install rs-rlhf[ray]")
ROWS = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    Image.new("RGB", (64, 64), "green").save(folder / "green.png")
    rows = [{"id": f"row {i}", "image": "green.png", "caption": f"{'very ' * (i % 7)}green"} for i in range(ROWS)]
    rows[5]["image"] = "missing.png"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# In a process of its own: Ray's threads outlive its shutdown.
PIPELINE = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster
from rs_rlhf.curation.ray import score_dataset

data, output = sys.argv[1:]

def slowed(batch):
    time.sleep(0.5)
    return batch

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
rows = [json.loads(line) for line in open(f"{data}/rows.jsonl")]
slow = ray.data.from_items(rows, override_num_blocks=30).map_batches(slowed, batch_size=4, num_cpus=0.5)
stage = score_dataset(slow, scorer="length", image_root=data, concurrency=(1, 2), batch_size=4, num_cpus=0.25)
found = []
for line in stage.iter_rows():
    found.append(line)
    if len(found) == 11:
        assert len(ray.nodes()) == 2
        cluster.remove_node(node, allow_graceful=False)
assert sum(node["Alive"] for node in ray.nodes()) == 1
with open(output, "w") as file:
    json.dump(found, file)
ray.shutdown()
cluster.shutdown()
"""


def rows_of(data):
    return [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_node_costs_no_row_and_the_scores_are_those_of_the_command(data, tmp_path):
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    command = [sys.executable, "pipeline.py", str(data), "found.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(line["row_id"] for line in found) == sorted(f"row {i}" for i in range(ROWS))
    given = ["--input", str(data / "rows.jsonl"), "--scorer", "length", "--max_error_fraction", "1"]
    assert run("score", [*given, "--output", str(tmp_path / "scores")]) == 0
    expected = read_scores(tmp_path / "scores").to_pylist()
    by_id = {line["row_id"]: line for line in found}
    for i, line in enumerate(expected):
        other = by_id[f"row {i}"]
        same = ("text_index", "score", "tokens", "image_hash", "text", "whole", "label")
        assert {name: other[name] for name in same} == {name: line[name] for name in same}
        assert (other["error"] is None) == (line["error"] is None) == (i != 5)


def test_a_model_scores_as_in_process(data, score_model_path):
    import pyarrow as pa

    from rs_rlhf import Scorer

    stage = curation_ray.ScoreStage({"model": str(score_model_path)}, "id", str(data), "made up")
    lines = stage(pa.Table.from_pylist(rows_of(data)[:8])).to_pylist()
    assert [line["row_id"] for line in lines] == [f"row {i}" for i in range(8)]
    scorer = Scorer.from_pretrained(score_model_path)
    for i in (0, 1, 6):
        expected = scorer.score(images=[str(data / "green.png")], completions=[[f"{'very ' * (i % 7)}green"]])
        assert lines[i]["score"] == pytest.approx(expected[0][0], abs=1e-5) and lines[i]["source"] == "made up"
    assert lines[5]["score"] is None and "missing.png" in lines[5]["error"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scorer": "length", "sed": 1}, "'sed' is no option"),
        ({"scorer": "length", "dtype": "float16"}, "not read"),
        ({}, "no --model"),
        ({"scorer": "length", "input": "x"}, "'input' is no option"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(options, told):
    with pytest.raises(ValueError, match=told):
        curation_ray.score_dataset(None, **options)


def test_rows_need_an_id(data):
    import pyarrow as pa

    stage = curation_ray.ScoreStage({"scorer": "length"}, "name", str(data), "")
    with pytest.raises(ValueError, match="id_column must name a column"):
        stage(pa.table({"image": ["green.png"], "caption": ["green"]}))
