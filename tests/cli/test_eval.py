"""`rs-rlhf eval` from end to end: real models (tiny), real files, real processes, killed and gone on with."""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import ROOT, data_folder, picture, warm
from helpers.benchmark_files import write
from helpers.processes import kill_when

from rs_rlhf import make_group
from rs_rlhf.cli import main as cli
from rs_rlhf.data.questions import QuestionRow
from rs_rlhf.errors import DataError
from rs_rlhf.evaluation.benchmark import Benchmark, benchmark_list
from rs_rlhf.evaluation.protocols import vlm_protocol
from rs_rlhf.models.policies.sampling import SamplingOptions
from rs_rlhf.runs.files import read_lines

QUESTIONS = 24
ACCELERATE = "import sys; from accelerate.commands.launch import main; sys.argv[0] = 'accelerate'; main()"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root with a question file, a preference file and a folder of classes, and their declarations."""
    root = tmp_path_factory.mktemp("data")
    rows, pairs = [], []
    for i in range(QUESTIONS):
        picture(i, 84 + 14 * (i % 3), 56).save(root / f"{i}.png")
        row = {"id": f"q{i}", "prompt": f"Question {'very ' * (i % 5)}long?", "image": f"{i}.png"}
        rows.append(row | {"solution": ("yes", "no", "3")[i % 3], "type": ("presence", "presence", "count")[i % 3]})
        texts = {"prompt": "", "chosen": "a river .", "rejected": "a forest .", "source": "made"}
        pairs.append({**texts, "image": f"{i}.png", "kind": ("a", "b")[i % 2]})
        folder = root / "classes" / ("river", "forest", "port")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    common = "title: Test\nsource: drawn here\n"
    (root / "asked.yaml").write_text(common + "task: vqa\nlayout: rows\npath: rows.jsonl\nmax_new_tokens: 6\n")
    (root / "liked.yaml").write_text(common + "task: preference\nlayout: preferences\npath: pairs.jsonl\n")
    (root / "named.yaml").write_text(
        common + "task: classification\nlayout: images\npath: classes\nprompt: What is this?\nmax_new_tokens: 6\n"
        "templates: ['a photo of {c}.']\n"
    )
    return root


def arguments(data, out, model, task="asked", *more):
    asked = ["--model", str(model), "--task", str(data / f"{task}.yaml"), "--data_root", str(data)]
    # The most likely token of a random model is always the same.
    drawn = ["--temperature", "1"] if task == "asked" else []
    return ["eval", *asked, *drawn, "--out", str(out), *map(str, more)]


def plain(path):
    """The lines of a samples file, without the one thing that differs between runs."""
    return [{key: value for key, value in one.items() if key != "seconds"} for one in read_lines(path)]


@pytest.fixture(scope="module")
def whole(data, tiny_vlm, tmp_path_factory):
    """A run in one process and one go, in batches of three."""
    out = tmp_path_factory.mktemp("whole")
    assert cli.main(arguments(data, out, tiny_vlm, "asked", "--batch_size", 3)) == 0
    return out


def test_a_run_writes_every_question_once_in_order_and_counts_them(whole):
    samples = read_lines(whole / "samples_asked.jsonl")
    assert [one["id"] for one in samples] == [f"q{i}" for i in range(QUESTIONS)]
    keys = {"id", "prompt", "output", "answer", "references", "types", "strict", "upstream_compat", "image", "pixels"}
    assert all(set(one) == keys | {"seconds"} and one["seconds"] > 0 for one in samples)
    assert len({one["output"] for one in samples}) > QUESTIONS // 2
    assert all(os.path.isfile(one["image"]) for one in samples) and samples[0]["references"] == ["yes"]
    task = json.loads((whole / "results.json").read_text())["tasks"]["asked"]
    assert task["n"] == QUESTIONS and task["accuracy"] == sum(one["strict"] for one in samples) / QUESTIONS
    assert task["types"]["count"]["n"] == QUESTIONS // 3 and task["parse_failures"] > 0  # a random model's answers
    assert task["pixel_budget"] == [56 * 56, 12 * 28 * 28] and len(task["dataset_hash"]) >= 16 and task["seed"] == 0
    table = (whole / "results.md").read_text()
    assert f"| asked | {task['model']} | {QUESTIONS} |" in table and "↳ count" in table
    assert sorted(path.name for path in whole.iterdir()) == [
        "results.html",
        "results.json",
        "results.md",
        "samples_asked.jsonl",
    ]


def test_the_same_command_judges_anew_and_asks_nothing(whole, data, tiny_vlm, monkeypatch, capsys):
    from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy

    monkeypatch.setattr(QwenVLPolicy, "_generate", lambda *_: pytest.fail("the model was asked again"))
    before = (whole / "results.json").read_bytes()
    assert cli.main(arguments(data, whole, tiny_vlm, "asked", "--batch_size", 3)) == 0
    assert (whole / "results.json").read_bytes() == before and "| asked |" in capsys.readouterr().out


def test_a_killed_run_goes_on_in_two_processes_with_the_same_files(whole, data, tiny_vlm, tmp_path):
    out = tmp_path / "out"
    command = arguments(data, out, tiny_vlm, "asked", "--batch_size", 3)
    part = out / "samples_asked.part-0.jsonl"
    kill_when(lambda: part.exists() and part.read_bytes().count(b"\n") > 4, command)
    kept = part.read_bytes()
    assert 4 < kept.count(b"\n") < QUESTIONS + 1, "killed before or after the middle"
    part.write_bytes(kept + b'{"id": "q7", "out')  # what a kill in the middle of a write leaves
    config = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
    warm.launched(["-c", ACCELERATE, "--config_file", config, "-m", "rs_rlhf", *command], tmp_path)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert plain(out / "samples_asked.jsonl") == plain(whole / "samples_asked.jsonl")
    times = {one["id"]: one["seconds"] for one in read_lines(out / "samples_asked.jsonl")}
    old = [json.loads(line) for line in kept.splitlines()[1:]]
    assert all(times[one["id"]] == one["seconds"] for one in old), "what was answered was answered again"


def test_answers_of_other_settings_are_refused_and_can_be_replaced(whole, data, tiny_vlm, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(arguments(data, out, tiny_vlm, "asked", "--limit", 4, "--max_new_tokens", 3)) == 0
    assert cli.main(arguments(data, out, tiny_vlm, "asked", "--limit", 4, "--max_new_tokens", 4)) == 1
    told = capsys.readouterr().err
    assert "samples_asked.jsonl: holds answers of another run: max_new_tokens was 3, now 4" in told
    (tmp_path / "options.yaml").write_text("s1: {path: '*_vv.tif', bands: [1]}")
    sensors = ("--limit", 4, "--max_new_tokens", 3, "--image_options", tmp_path / "options.yaml")
    assert cli.main(arguments(data, out, tiny_vlm, "asked", *sensors)) == 1
    assert "reading.image_options was None, now [{'name': 's1'" in capsys.readouterr().err
    assert cli.main(arguments(data, out, tiny_vlm, "asked", "--limit", 4, "--max_new_tokens", 4, "--overwrite")) == 0
    assert json.loads((out / "results.json").read_text())["tasks"]["asked"]["settings"]["max_new_tokens"] == 4


def test_another_version_of_the_data_is_refused(data, tiny_vlm, tmp_path, capsys):
    command = arguments(data, tmp_path / "out", tiny_vlm, "asked", "--data", f"asked={tmp_path / 'rows.jsonl'}")
    lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)[:3]
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    assert cli.main(command) == 0
    (tmp_path / "rows.jsonl").write_text("".join(lines).replace('"solution": "no"', '"solution": "yes"'))
    assert cli.main(command) == 1
    assert "dataset_hash was" in capsys.readouterr().err


def test_a_score_model_takes_the_best_choice_and_reports_on_preferences(data, score_model_path, tmp_path):
    assert cli.main(arguments(data, tmp_path, score_model_path, "named", "--model-type", "score")) == 0
    assert cli.main(arguments(data, tmp_path, score_model_path, "liked")) == 0
    named, liked = (read_lines(tmp_path / f"samples_{name}.jsonl") for name in ("named", "liked"))
    for one in named:
        choices = ["forest", "port", "river"]
        best = max(range(3), key=lambda k: one["scores"][k])
        assert one["output"] == choices[best] and one["strict"] == (choices[best] == one["references"][0])
    results = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert set(results) == {"named", "liked"} and results["liked"]["by_kind"]["a"]["n"] == QUESTIONS // 2
    assert results["liked"]["accuracy"] == sum(one["scores"][0] > one["scores"][1] for one in liked) / QUESTIONS
    assert results["liked"]["swap_error"] == 0 and 0 <= results["liked"]["calibration"]["error"] <= 1
    assert len(liked[0]["shuffled"]) == 2 and liked[0]["shuffled"] != liked[0]["scores"]


def test_system_prompt_and_score_of_the_answers(data, tiny_vlm, score_model_path, tmp_path):
    more = ["--system_prompt", "think-answer", "--max_new_tokens", 4, "--limit", 3, "--score_model", score_model_path]
    assert cli.main(arguments(data, tmp_path / "a", tiny_vlm, "asked", *more)) == 0
    assert cli.main(arguments(data, tmp_path / "b", tiny_vlm, "asked", *more[2:])) == 0
    asked = read_lines(tmp_path / "a" / "samples_asked.jsonl")
    plainly = read_lines(tmp_path / "b" / "samples_asked.jsonl")
    assert all(isinstance(one["score"], float) for one in asked)
    assert [one["output"] for one in asked] != [one["output"] for one in plainly]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--task", "aidd"], "did you mean 'aid'?"),
        (["--model-type", "clip"], "is a vqa task, for models of type vlm, not clip"),
        (["--data", "asked=nowhere"], "--data asked=nowhere: no such file or folder"),
        (["--data", "askd=."], "--data askd=.: expected TASK=PATH with TASK one of asked"),
        (["--task", ","], "--task names no benchmark"),
        (["--task", "aid,rsicd-retrieval"], "aid for a vlm, rsicd-retrieval for a clip; run them one by one"),
        (["--task", "aid-rsicd-preference"], "--temperature is not read when a model of type score is evaluated"),
        (["--batch_size", "0"], "--batch_size is 0, expected at least 1"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0, expected at least 1"),
        (["--limit", "0"], "it must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(data, tiny_vlm, tmp_path, capsys, change, told):
    assert cli.main([*arguments(data, tmp_path, tiny_vlm), *change]) == 1
    assert told in capsys.readouterr().err


def test_damaged_files_are_named(whole, data, tiny_vlm, tmp_path, capsys):
    broken = data / "broken.jsonl"
    broken.write_text((data / "rows.jsonl").read_text() + '{"prompt": "cut sh')
    command = arguments(data, tmp_path / "out", tiny_vlm, "asked", "--data", f"asked={broken}")
    assert cli.main(command) == 1 and f"{broken}, line {QUESTIONS + 1}: not JSON" in capsys.readouterr().err
    broken.write_text("")
    assert cli.main(command) == 1 and "no " in capsys.readouterr().err
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "results.json").write_bytes((whole / "results.json").read_bytes())
    text = (whole / "samples_asked.jsonl").read_text().splitlines(keepends=True)
    (copied / "samples_asked.jsonl").write_text("".join(text[:2]) + text[2][:40])
    assert cli.main(arguments(data, copied, tiny_vlm, "asked", "--batch_size", 3)) == 1
    assert "samples_asked.jsonl, line 3: not a whole JSON object" in capsys.readouterr().err


def test_answers_of_which_it_is_not_known_what_gave_them_are_not_thrown_away(whole, data, tiny_vlm, tmp_path, capsys):
    shutil.copy(whole / "samples_asked.jsonl", tmp_path)
    command = arguments(data, tmp_path, tiny_vlm, "asked", "--batch_size", 3)
    assert cli.main(command) == 1 and "results.json does not say of which run" in capsys.readouterr().err
    assert (tmp_path / "samples_asked.jsonl").read_bytes() == (whole / "samples_asked.jsonl").read_bytes()
    (tmp_path / "results.json").write_text('{"tasks": ')
    assert cli.main(command) == 1 and "results.json: not whole JSON" in capsys.readouterr().err


class Says:
    """A model that says one thing."""

    def __init__(self, text):
        self.text = text

    def sample_batches(self, groups, sampling, **_):
        yield list(range(len(groups))), [[self.text]] * len(groups)

    def pixels(self, group):
        return [(56, 56)]


def test_captions_are_measured_without_the_thoughts_before_them():
    row = QuestionRow(make_group("Describe the image.", [], "a.png"), "", "q", captions=["a river ."])
    model = Says("<think>maybe a port</think><answer>a  river\n.</answer>")
    benchmark = Benchmark("t", "captions", "images", "d", "here")
    protocol = vlm_protocol(benchmark, lambda: model, SamplingOptions())
    ((_, (said,)),) = protocol.answer([row], (0, 1), set())
    assert protocol.judge(row, said) == {"answer": "a river ."}


def test_a_system_prompt_is_not_dropped_where_the_data_have_one():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rural or urban?"}]
    row = QuestionRow(make_group(prompt, [], None, where="rows.jsonl, line 3"), "", "q", reference="rural")
    protocol = vlm_protocol(
        Benchmark("t", "vqa", "rows", "d", "here"), lambda: Says("rural"), SamplingOptions(), "Think first."
    )
    with pytest.raises(DataError, match="rows.jsonl, line 3: the prompt has a system turn"):
        next(protocol.answer([row], (0, 1), set()))


def test_a_missing_image_stops_the_run_before_anything_is_scored(data, tiny_vlm, tmp_path, capsys):
    rows = (data / "rows.jsonl").read_text().replace('"0.png"', '"gone.png"')
    (tmp_path / "rows.jsonl").write_text(rows)
    assert (
        cli.main(arguments(data, tmp_path / "out", tiny_vlm, "asked", "--data", f"asked={tmp_path}/rows.jsonl")) == 1
    )
    assert "gone.png" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_list_names_every_declared_benchmark(capsys):
    from rs_rlhf import declarations

    assert cli.main(["eval", "--list"]) == 0
    shown = capsys.readouterr().out
    assert declarations.names("eval") and all(f"\n{name} " in shown for name in declarations.names("eval"))
    assert "rsvqa-lr" in shown and benchmark_list() in shown


# Question, type, right answer, reply, whether strict takes it, whether the published rule does.
RSVQA = [
    ("Is a road present?", "presence", "yes", "Yes, there is a road.", True, True),
    ("Is a farm present?", "presence", "no", "no", True, True),
    ("Is a lake present?", "presence", "no", "yes", False, False),
    ("Is a dam present?", "presence", "yes", "", False, True),  # an empty text is in every answer
    ("Are there more roads than farms?", "comp", "yes", "yes", True, True),
    ("Are there more farms than roads?", "comp", "no", "No.", True, True),
    ("How many buildings are there?", "count", "17", "12", True, False),  # both between 10 and 100
    ("How many lakes are there?", "count", "0", "0", True, True),
    ("How many dams are there?", "count", "3", "between 10 and 100", False, False),
    ("Is it a rural or an urban area", "rural_urban", "rural", "<answer>Rural</answer>", True, True),
]


@pytest.fixture
def rsvqa(tmp_path):
    """RSVQA-LR in its official files, on two real Sentinel-2 tiles; inactive entries in each."""
    tiles = sorted(data_folder("rsvqa_tif").glob("lr_*.tif"))[:2]
    root = tmp_path / "data" / "RSVQA_LR"
    base = {"date_added": 1.0, "people_id": 0, "active": True}
    off = {"id": 0, "active": False}
    questions = [
        {"id": i, "img_id": 1 + i % 2, "type": kind, "question": asked, "answers_ids": [100 + i], **base}
        for i, (asked, kind, *_) in enumerate(RSVQA, start=1)
    ]
    gone = {**questions[0], "id": 50, "active": False}
    answers = [{"id": 100 + i, "question_id": i, "answer": row[2], **base} for i, row in enumerate(RSVQA, start=1)]
    images = [
        {
            "id": i,
            "questions_ids": [one["id"] for one in questions if one["img_id"] == i],
            "original_name": f"S2_{i}.tif",
            **base,
        }
        for i in (1, 2)
    ]
    for name, rows in (
        ("questions", [off, *questions, gone]),
        ("answers", [off, *answers]),
        ("images", [off, *images]),
    ):
        write(root / f"LR_split_test_{name}.json", {name: rows})
    (root / "Images_LR").mkdir()
    for i, tile in enumerate(tiles, start=1):
        shutil.copy(tile, root / "Images_LR" / f"{i}.tif")
    return root.parent


@pytest.fixture
def endpoint():
    """A chat endpoint that replies as the table says, or with what `reply` is set to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = body["messages"][-1]["content"]
            asked = next(part["text"] for part in parts if part["type"] == "text")
            server.pictures.update(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
            said = next((row[3] for row in RSVQA if asked.startswith(row[0])), "?")
            status, text = server.reply or (200, json.dumps({"choices": [{"message": {"content": said}}]}))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.reply, server.pictures = None, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def asked_there(endpoint, rsvqa, out, *more):
    url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1"
    return cli.main(
        [
            "eval",
            "--model",
            "m",
            "--endpoint",
            url,
            "--task",
            "rsvqa-lr",
            "--data_root",
            str(rsvqa),
            "--out",
            str(out),
            *more,
        ]
    )


def test_official_rsvqa_files_give_the_figures_counted_by_hand(endpoint, rsvqa, tmp_path):
    assert asked_there(endpoint, rsvqa, tmp_path / "out") == 0
    samples = read_lines(tmp_path / "out" / "samples_rsvqa-lr.jsonl")
    assert [(one["strict"], one["upstream_compat"]) for one in samples] == [row[4:] for row in RSVQA]
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["rsvqa-lr"]
    assert (task["n"], task["accuracy"], task["upstream_compat"], task["parse_failures"]) == (10, 0.7, 0.7, 0.1)
    assert task["average_accuracy"] == pytest.approx((1 / 2 + 1 + 2 / 3 + 1) / 4)
    of_types = {name: (one["n"], one["accuracy"]) for name, one in task["types"].items()}
    assert of_types == {"presence": (4, 0.5), "comp": (2, 1.0), "count": (3, 2 / 3), "rural_urban": (1, 1.0)}
    assert len(endpoint.pictures) == 2 and all(url.startswith("data:image/") for url in endpoint.pictures)
    assert asked_there(endpoint, rsvqa, tmp_path / "core", "--core_only") == 0
    core = json.loads((tmp_path / "core" / "results.json").read_text())["tasks"]["rsvqa-lr"]
    assert core["n"] == 7 and "count" not in core["types"] and core["dataset_hash"] != task["dataset_hash"]


@pytest.mark.parametrize("reply", [(400, "no such model"), (200, "<html>oops</html>"), (200, '{"choices": []}')])
def test_an_endpoint_out_of_order_stops_the_run_and_scores_nothing(endpoint, rsvqa, tmp_path, capsys, reply):
    endpoint.reply = reply
    assert asked_there(endpoint, rsvqa, tmp_path) == 1
    assert "127.0.0.1" in capsys.readouterr().err and not list(tmp_path.glob("samples_*"))
    endpoint.reply = None
    assert asked_there(endpoint, rsvqa, tmp_path) == 0
    assert len(read_lines(tmp_path / "samples_rsvqa-lr.jsonl")) == len(RSVQA)
