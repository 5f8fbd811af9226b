"""A policy's wrong answers become rejected; open-ended answers are judged; a killed run goes on."""

import base64
import functools
import io
import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import picture
from helpers.processes import kill_when
from PIL import Image

from rs_rlhf.cli.main import run
from rs_rlhf.data.questions import read_questions
from rs_rlhf.data.scenes.make import write_scenes
from rs_rlhf.errors import DataError, OptionError, RSRLHFError
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.metrics.closed_answers import judge_solution
from rs_rlhf.metrics.quantities import plain
from rs_rlhf.preferences.candidates import candidates_of
from rs_rlhf.preferences.judges import EndpointJudge, RewardJudge, judged_pairs, score_of
from rs_rlhf.preferences.mistakes import RejectedOptions, closed_rejected, damaged_answers
from rs_rlhf.preferences.reader import load_preferences
from rs_rlhf.preferences.schema import group_from_row

main = functools.partial(run, "data sample-pairs")


def rows_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 24, 8, size=32)
    return folder


@pytest.fixture
def command(tiny_vlm):
    return ["--policy", tiny_vlm, "-n", "6", "--max_new_tokens", "3"]


def rejected_of(said, reference, choices, counts=None, seed=0, **options):
    return closed_rejected(said, reference, choices, RejectedOptions(**options), random.Random(seed), counts)


def test_closed_rejected():
    said = [
        "Lake.",
        "lake",
        "port",
        "a sea",
        " River .",
        "This is a river.",
        "xx",
        "xx",
        "xx",
        "",
        "  ",
        "see <image>",
        "...",
        "<think>hm</think><answer>Lake</answer>",
    ]
    counts = Counter()
    rejected = rejected_of(said, "river", ["river", "lake", "port", "Forest"], counts=counts)
    assert [(one["text"], one["kind"], one["count"]) for one in rejected] == [
        ("Lake.", "policy_wrong", 3),
        ("port", "policy_wrong", 1),
        ("xx", "policy_malformed", 3),
        ("a sea", "policy_malformed", 1),
        ("...", "policy_malformed", 1),
    ]
    assert counts == {"samples": 14, "right": 2, "wrong": 4, "malformed": 5, "empty": 3, "duplicates": 4}
    more = rejected_of(said, "river", ["river", "lake", "port", "Forest"], max_rejected=1, choices_extra=9)
    assert more[0]["text"] == "Lake." and {one["text"] for one in more[1:]} == {"port", "Forest"}
    assert {one["kind"] for one in more[1:]} == {"wrong_choice"}
    assert rejected_of(["river"] * 3, "River", ["river"]) == []
    order = rejected_of(["xx", "lake"], "river", ["lake", "port"], choices_extra=1)
    assert [one["kind"] for one in order] == ["policy_wrong", "wrong_choice", "policy_malformed"]


def test_answers_are_read_as_evaluation_reads_them():
    assert [one["text"] for one in rejected_of(["3", "There are 3.", "about 3", "4"], "3", ["3", "4"])] == [
        "4",
        "about 3",
    ]
    listed = closed_rejected(["B", "(A)", "C"], "b", ["a", "b"], RejectedOptions(), random.Random(0), None, ["a", "b"])
    assert [(one["text"], one["kind"]) for one in listed] == [("(A)", "policy_wrong"), ("C", "policy_malformed")]


def test_damaged_forms_are_rejected_and_never_a_choice():
    choices = ["sea port", "sea", "forest"]
    cut, doubled, mixed, first = damaged_answers("sea port", choices)
    assert first == [choice.split()[0] for choice in choices if " " in choice]
    assert "sea por" in cut and "port" in cut and "sea port port" in doubled and "sea port forest" in mixed
    found = rejected_of([], "sea port", choices, damaged_extra=12, seed=1)
    assert len(found) == 12 == len({one["text"] for one in found}) and {one["kind"] for one in found} == {"damaged"}
    assert not {"sea", "sea port", "forest"} & {one["text"] for one in found}
    again = rejected_of([], "sea port", choices, damaged_extra=12, seed=1)
    assert again == found and rejected_of([], "a", ["a"], damaged_extra=3)[0]["text"] == "a a"


def test_command_on_labelled_images(scenes, command, tmp_path, capsys):
    out = tmp_path / "out" / "pairs.jsonl"
    line = [*command, "--data", str(scenes), "--split", "train", "--output", str(out), "--choices_extra", "2"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "24 rows, 24 with images" in printed and "0 of them excluded, being in" in printed
    assert not list(out.parent.glob("*.partial")) and not list(out.parent.glob("*.new"))
    rows = rows_of(out)
    table = dict(text.rsplit(maxsplit=1) for text in printed.splitlines() if text.startswith(("rows", "samples")))
    assert table["samples"] == "144" and table["rows written"] == str(len(rows))
    kinds = Counter(row["kind"] for row in rows)
    assert kinds["wrong_choice"] == 48 and kinds["policy_malformed"] > 0
    labels = {row["chosen"] for row in rows}
    for row in rows:
        assert row["prompt"] == "What is the scene class of this image?"
        assert (out.parent / row["image"]).is_file() and not Path(row["image"]).is_absolute()
        assert not judge_solution(row["rejected"], row["chosen"])["strict"] and row["rejected"].strip()
        assert (row["rejected"] in labels) == (row["kind"] != "policy_malformed")
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(load_preferences(out)) == len(rows)
    with pytest.raises(OptionError, match="exists; choose another --output or pass --overwrite"):
        main(line)
    before = out.read_bytes()
    assert main([*line, "--overwrite"]) == 0 and out.read_bytes() == before
    assert main([*line, "--overwrite", "--limit", "1", "--choices_extra", "99"]) == 0  # choices are those of all rows
    rows = rows_of(out)
    assert {row["rejected"] for row in rows if row["kind"] == "wrong_choice"} == labels - {rows[0]["chosen"]}
    with pytest.raises(OptionError, match="--limit is 0"):
        main([*line, "--overwrite", "--limit", "0"])


def test_list_form_and_the_hardest(scenes, command, tmp_path):
    out = scenes / "list.jsonl"
    line = [*command, "--input", str(scenes), "--split", "validation", "--output", str(out), "--form", "list"]
    assert main([*line, "--temperature", "0.7"]) == 0
    rows = rows_of(out)
    assert len(rows) == 8 and all((scenes / row["image"]).is_file() for row in rows)
    assert not (scenes / "images" / "validation" / "images").exists()  # images that lie there already stay there
    for row in rows:
        assert len(row["rejected"]) == len(row["kinds"]) == len(row["counts"]) > 1
        assert row["counts"] == sorted(row["counts"], reverse=True) and row["kind"] == row["kinds"][0]
        assert len(group_from_row(row).completions) == 1 + len(row["rejected"])
    # What was malformed is well-formed where it is among the choices.
    choices = tmp_path / "choices.txt"
    choices.write_text("\n".join(plain(one) for row in rows for one in row["rejected"]), encoding="utf-8")
    hard = [*line[:-2], "--temperature", "0.7", "--overwrite", "--keep", "hard", "--choices", str(choices)]
    assert main(hard) == 0
    pairs = rows_of(out)
    assert len(pairs) == 8
    for pair, row in zip(pairs, rows, strict=True):
        wrong = [n for text, n in zip(row["rejected"], row["counts"], strict=True) if plain(text)]
        assert pair["kind"] == "policy_wrong" and pair["count"] == max(wrong)
    with pytest.raises(OptionError, match="--keep all keeps all") as error:
        main([*line, "--overwrite", "--keep", "all", "--max_rejected", "2"])
    assert error.value.key == "max_rejected"


def questions(folder, rows):
    folder.mkdir(exist_ok=True)
    for k in range(3):
        picture(k).save(folder / f"{k}.png")
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_questions_with_messages_and_several_images(command, tmp_path):
    turns = ("system", "Be brief."), ("user", "Which is <image> or <image>?")
    messages = [{"role": role, "content": text} for role, text in turns]
    file = questions(
        tmp_path / "in",
        [
            {"prompt": "How many?", "image": "0.png", "solution": 3, "choices": ["1", "2", "3"], "id": "q0"},
            {"prompt": messages, "images": ["1.png", "2.png"], "answer": "the first", "choices": ["none"]},
            {"prompt": "Is it rural?", "image": "0.png", "solution": "yes", "choices": ["yes", "no"]},
            {"prompt": "Where is it?", "image": "0.png", "solution": "[1, 2, 3, 4]", "reward_type": "iou"},
        ],
    )
    out = tmp_path / "out" / "pairs.jsonl"
    assert main([*command, "--input", str(file), "--output", str(out), "--choices_extra", "1"]) == 0
    rows = rows_of(out)
    pair = next(row for row in rows if "images" in row)
    assert len(pair["images"]) == 2 and pair["chosen"] == [{"role": "assistant", "content": "the first"}]
    (extra,) = [row for row in rows if row["kind"] == "wrong_choice" and row["id"].startswith("q0#")]
    assert extra["rejected"] in ("1", "2")
    groups = [group_from_row(row) for row in rows]
    assert {len(group.images) for group in groups} == {1, 2}
    assert len(list((out.parent / "images").rglob("*.png"))) == 3  # an image of two questions is written once
    assert not any(row["prompt"] == "Where is it?" for row in rows)


def test_images_in_parquet_are_written_once(command, tmp_path):
    import datasets

    buffer = io.BytesIO()
    picture(5).save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "a.png"}
    rows = {"prompt": ["one?", "two?"], "image": [image, image], "solution": ["x1", "x2"]}
    file = tmp_path / "in.parquet"
    text = datasets.Value("string")
    features = datasets.Features(prompt=text, image=datasets.Image(), solution=text)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    out = tmp_path / "out.jsonl"
    assert main([*command, "--input", str(file), "--output", str(out)]) == 0
    (path,) = {row["image"] for row in rows_of(out)}
    assert (tmp_path / path).read_bytes() == buffer.getvalue()


def test_killed_run_goes_on(scenes, tiny_vlm, tmp_path, capsys):
    line = f"--policy {tiny_vlm} --input {scenes} --split train -n 6 --max_new_tokens 3 --token_budget 200".split()
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert main([*line, "--output", str(whole)]) == 0
    partial = tmp_path / "killed.jsonl.partial"
    argv = ["data", "sample-pairs", *line, "--output", str(killed)]
    kill_when(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3, argv)
    assert not killed.exists() and partial.read_bytes().count(b"\n") >= 3
    with partial.open("ab") as file:
        file.write(b'{"rows": [1, 2], "answ')  # half a line
    capsys.readouterr()
    with pytest.raises(OptionError) as error:
        main([*line, "--output", str(killed), "--temperature", "0.5"])
    assert error.value.key == "temperature"
    (tmp_path / "options.yaml").write_text("s1: {path: '*_vv.tif', bands: [1]}")
    with pytest.raises(OptionError) as error:
        main([*line, "--output", str(killed), "--image_options", str(tmp_path / "options.yaml")])
    assert error.value.key == "image_options"
    assert main([*line, "--output", str(killed)]) == 0
    assert "already: answers to" in capsys.readouterr().out
    assert killed.read_bytes() == whole.read_bytes() and not partial.exists()


def longest(prompts, completions, images, captions, **columns):
    """Scores an answer by its length; what has an "e" fails."""
    assert len(prompts) == len(completions) == len(images) == len(captions) and all(len(own) == 1 for own in images)
    return [None if "e" in text else float(len(text)) for text in completions]


def test_judged_by_a_reward(scenes, command, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    out = tmp_path / "pairs.jsonl"
    line = [*command, "--input", str(scenes), "--split", "validation", "--output", str(out), "--open_ended"]
    with pytest.raises(OptionError, match="no single right answer; give --judge") as error:
        main(line)
    assert error.value.key == "judge" and "validation" in error.value.where
    line += ["--judge", "test_mistakes.longest"]
    with pytest.raises(OptionError) as error:
        main([*line, "--judge_model", "x"])
    assert error.value.key == "judge_model"
    assert main([*line, "--margin", "2", "--judged", "all"]) == 0
    rows = rows_of(out)
    assert rows and "not judged" in capsys.readouterr().out
    for row in rows:
        assert row["prompt"] == "Describe the image." and row["kind"] == "judged" and "e" not in row["rejected"]
        assert row["chosen_score"] == len(row["chosen"]) >= row["rejected_score"] + 2
    assert main([*line, "--margin", "99", "--overwrite"]) == 0 and rows_of(out) == []
    with pytest.raises(OptionError, match="--judge json.nothing cannot be imported"):
        RewardJudge("json.nothing")


def test_judged_pairs():
    candidates = candidates_of(["a", "b ", "a", "", "c", "d", "b"])
    assert candidates == {"a": 2, "b": 2, "c": 1, "d": 1}
    chosen, best, rejected = judged_pairs(candidates, [3.0, None, 9.0, 5.0], against="all")
    assert (chosen, best, [one["text"] for one in rejected]) == ("c", 9.0, ["d", "a"])
    assert [one["text"] for one in judged_pairs(candidates, [3.0, None, 9.0, 5.0])[2]] == ["a"]
    assert [one["text"] for one in judged_pairs(candidates, [3.0, 0.0, 9.0, 5.0], 5, "all")[2]] == ["a", "b"]
    assert judged_pairs(candidates, [2.0] * 4)[2] == [] and judged_pairs(candidates, [None] * 4)[2] == []


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7),
        (" Score: 6.5/10.", 6.5),
        ("8 out of 10", 8),
        ("<think>2 or 3?</think>4", 4),
        ("0", 0),
        ("10", 10),
        ("", None),
        ("good", None),
        ("11", None),
        ("-1", None),
        ("the 2 ponds deserve 7", None),
        ("7/100", None),
    ],
)
def test_score_of(reply, score):
    assert score_of(reply) == score


@pytest.fixture
def endpoint():
    """A chat endpoint on this machine: `.replies` says what it does next, `.seen` holds the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with self.server.lock:
                self.server.seen.append((self.path, self.headers, body))
                action = self.server.replies.pop(0) if self.server.replies else self.server.reply
            status, text = action if isinstance(action, tuple) else (200, action(body) if callable(action) else action)
            if status == 0:
                return  # hangs up
            content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies, server.reply, server.lock = [], [], "5", threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_endpoint_judge(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RS_RLHF_JUDGE_KEY", "k")
    file = questions(tmp_path, [{"prompt": "What is here?", "image": "1.png", "captions": ["a harbour ."]}])
    (row,) = read_questions(str(file))
    judge = EndpointJudge(endpoint.url, "big", tries=3, wait=0.01, timeout=5, parallel=1)
    endpoint.replies = [(0, ""), (503, ""), "7/10", (429, ""), "no idea", (400, ""), (0, ""), (500, ""), (0, "")]
    assert judge([row], [["a port", "b", "c", "d", "e"]]) == [[7.0, None, None, None, 5.0]]
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer k" and body["model"] == "big"
    image, text = body["messages"][0]["content"]
    assert all(part in text["text"] for part in ("Question: What is here?", "Answer: a port", "- a harbour ."))
    shown = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1])))
    assert shown.tobytes() == read_image(str(tmp_path / "1.png")).tobytes()
    endpoint.replies = [(401, "")]
    with pytest.raises(OptionError, match="answers 401 .*check --judge_url"):
        judge([row], [["a"]])


def test_judging_goes_on_where_it_stopped(scenes, command, endpoint, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    line = [*command, "--input", str(scenes), "--split", "train", "--output", str(out), "--open_ended"]
    line += ["--judge_url", endpoint.url]
    endpoint.reply = "I cannot say"
    with pytest.raises(OptionError, match="no score to any answer of 24 rows in a row.*judged is kept"):
        main(line)
    asked = len(endpoint.seen)
    endpoint.reply = lambda body: str(len(body["messages"][0]["content"][-1]["text"]) % 10)
    capsys.readouterr()
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "already: answers to 24 rows, scores of 0" in printed and "Judging" not in printed
    assert len(endpoint.seen) == 2 * asked and 12 < len(rows_of(out)) <= 24


def test_judged_by_a_model(scenes, command, tiny_vlm, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    line = [*command, "--input", str(scenes), "--split", "validation", "--output", str(out), "--open_ended"]
    assert main([*line, "--judge_model", tiny_vlm]) == 0  # a random model never gives a number, and fails honestly
    assert rows_of(out) == []
    table = capsys.readouterr().out
    assert "rows without a rejected" in table and "not judged" in table


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        ({"prompt": "a", "image": "9.png", "solution": "b"}, "", "line 2: image '9.png': no such file"),
        ({"prompt": "a", "image": "1.png", "solution": ["b"]}, "solution", "line 2: `solution` is"),
        ({"prompt": "a", "image": "1.png", "solution": "b", "choices": "b"}, "choices", "line 2: `choices` is 'b'"),
        ({"image": "1.png"}, "prompt", "line 2: no column `prompt`"),
        ({"prompt": "a", "image": "1.png"}, "judge", "line 2: no single right answer"),
    ],
)
def test_mistakes_name_file_and_row(row, key, message, command, tmp_path):
    file = questions(tmp_path / "in", [{"prompt": "a", "image": "0.png", "solution": "b"}, row])
    with pytest.raises(RSRLHFError, match=message) as error:
        main([*command, "--input", str(file), "--output", str(tmp_path / "o.jsonl")])
    assert error.value.key == key


def test_mistakes_in_paths_are_refused(command, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        main([*command, "--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "o.jsonl")])
    with pytest.raises(OptionError, match="must end in .jsonl"):
        main([*command, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o.json")])
