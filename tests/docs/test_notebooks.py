"""The notebooks of `docs/notebooks`: run from top to bottom, and what their prose says is what comes out."""

import ast
import os
import re

import nbformat
import pytest
from helpers import ROOT, warm

FOLDER = ROOT / "docs" / "notebooks"
NAMES = ["1_score_and_curate", "2_train_a_score_model", "3_grpo_and_best_of_n"]


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name, tmp_path, monkeypatch):
    """Runs a notebook; returns the texts and the HTML of its outputs, each joined."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{warm.shims(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(name)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(texts), "\n".join(output.get("data", {}).get("text/html", "") for output in outputs)


def shares(line, texts):
    """The percentages of the line that begins so."""
    (found,) = re.findall(rf"^{line}.*$", texts, re.MULTILINE)
    return [int(number) for number in re.findall(r"(\d+)%", found)]


def test_every_notebook_is_here_without_outputs_and_in_short_cells():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    for name in NAMES:
        notebook = read(name)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None, "outputs are not committed"
                assert len(cell.source.splitlines()) <= 20
                ast.parse(re.sub(r"(?m)^!(.*\\\n)*.*$", "pass", cell.source))
        assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


@pytest.mark.slow
def test_scores_rank_and_curation_keeps_what_is_right(tmp_path, monkeypatch):
    texts, html = run(NAMES[0], tmp_path, monkeypatch)
    (right,) = re.findall(r"(\d) of 8 tiles: the best text", texts)
    assert int(right) >= 6
    assert html.count("data:image/jpeg") >= 12, "tiles in what `show` and `table` return"
    pool, kept = shares("right in the pool", texts)
    assert pool == 60 and kept >= 75
    assert "60 rows: image, question, answer, truth" in texts and "licence" in texts


@pytest.mark.slow
def test_a_score_model_learns_and_looks(tmp_path, monkeypatch):
    texts, html = run(NAMES[1], tmp_path, monkeypatch)
    found = [line.split() for line in texts.splitlines() if re.match(r"\d+\s+[01]\.\d+\s+-?\d\.\d+$", line)]
    curve = [(int(step), float(accuracy), float(gap)) for step, accuracy, gap in found]
    assert [step for step, *_ in curve] == [0, 30, 60, 90]
    assert curve[0][1] < 0.65 and curve[-1][1] > 0.8 and curve[-1][2] > 0.2, "better than chance, by looking"
    assert "data:image/jpeg" in html, "a group shows itself"
    assert re.search(r"[01]\.\d+  The chosen text scores above the rejected one \(95% interval", texts)
    assert "chosen_score" in texts and "This is a score model" in texts


@pytest.mark.slow
def test_best_of_n_and_grpo_answer_better(tmp_path, monkeypatch):
    texts, html = run(NAMES[2], tmp_path, monkeypatch)
    greedy, best = shares("right:", texts)[:2]
    assert best > greedy, "the score model chooses better than the policy"
    before, after = shares("greedy answers that are right: .* before", texts)
    assert after > before == greedy
    assert " of 8</em>" in html
