"""Benchmarks as tasks of lmms-eval: its documented keys, our questions, and our judge."""

import importlib.util
import json

import pytest
import yaml

from rs_rlhf import declarations
from rs_rlhf.cli.main import run
from rs_rlhf.errors import OptionError
from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.lmms.tasks import TASKS, write_tasks
from rs_rlhf.evaluation.reader import read_benchmark, references_of

# The fields of lmms-eval's TaskConfig (lmms_eval/api/task.py) that docs/guides/task_guide.md documents.
DOCUMENTED = set(
    "task group task_alias tag dataset_path dataset_name dataset_kwargs test_split training_split validation_split "
    "fewshot_split process_docs doc_to_messages doc_to_visual doc_to_text doc_to_target doc_to_choice num_fewshot "
    "batch_size metric_list output_type generation_kwargs metadata process_results lmms_eval_specific_kwargs".split()
)
FUNCTIONS = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")


class Loader(yaml.SafeLoader):
    """Reads `!function utils.name` as that name, as lmms-eval's loader finds it."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    run("data scenes", [str(folder / "scenes"), "--n_train", "4", "--n_validation", "6", "--size", "56"])
    return folder


def utils_of(folder):
    spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_benchmark_with_answers_in_words_is_a_task_with_documented_keys(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RS_RLHF_DATA", raising=False)
    files = write_tasks("all", tmp_path / "tasks")
    benchmarks = [load_benchmark(name) for name in declarations.names("eval")]
    expected = {f"rs_{one.name}" for one in benchmarks if one.task in TASKS}
    tasks = [yaml.load(file.read_text(), Loader) for file in files if file.suffix == ".yaml"]
    assert {task["task"] for task in tasks} == expected and len(tasks) == len(expected) > 10
    utils = utils_of(tmp_path / "tasks")
    for task in tasks:
        assert set(task) <= DOCUMENTED and task["output_type"] == "generate_until"
        assert all(task[name] == f"utils.{name}" and callable(getattr(utils, name)) for name in FUNCTIONS)
        benchmark = load_benchmark(task["task"].removeprefix("rs_"))
        assert task["generation_kwargs"]["max_new_tokens"] == benchmark.max_new_tokens
        assert task["dataset_kwargs"]["data_files"][task["test_split"]].endswith(f"{task['task']}.jsonl")
    assert "rs_aid.jsonl is not written" in capsys.readouterr().out


def test_questions_and_judgement_are_those_of_our_evaluation(scenes, tmp_path, capsys):
    run("eval export", ["--tasks", "scenes", "--data_root", str(scenes), "--out", str(tmp_path / "tasks")])
    task = yaml.load((tmp_path / "tasks" / "rs_scenes.yaml").read_text(), Loader)
    with open(task["dataset_kwargs"]["data_files"]["test"]) as file:
        docs = [json.loads(line) for line in file]
    rows = read_benchmark(load_benchmark("scenes"), scenes / "scenes")
    assert [doc["id"] for doc in docs] == [row.id for row in rows]
    utils = utils_of(tmp_path / "tasks")
    for doc, row in zip(docs, rows, strict=True):
        right = references_of(row)[0]
        wrong = next(choice for choice in row.choices if choice != right)
        assert utils.doc_to_target(doc) == right and "scene class" in utils.doc_to_text(doc)
        assert [image.size for image in utils.doc_to_visual(doc)] == [(56, 56)]
        assert utils.process_results(doc, [f"{right}."])["accuracy"] == 1.0
        assert utils.process_results(doc, [wrong])["accuracy"] == 0.0
        assert utils.process_results(doc, ["I cannot say"])["parse_failure"] == 1.0


def test_what_lmms_eval_cannot_be_given_is_refused(tmp_path):
    for arguments, key in (
        (["--tasks", "dior-rsvg"], "tasks"),
        ([], "run"),
        (["x", "--tasks", "aid"], "run"),
        (["x"], "format"),
    ):
        with pytest.raises(OptionError) as error:
            run("eval export", [*arguments, "--out", str(tmp_path / "out")])
        assert error.value.key == key
