"""What the tests of benchmarks share: declarations, files in official form, and the check of an error."""

import json

import pytest

from helpers import picture
from rs_rlhf.data.group import prompt_text
from rs_rlhf.errors import DataError
from rs_rlhf.evaluation.benchmark import Benchmark, load_benchmark
from rs_rlhf.evaluation.reader import read_benchmark


def declared(name, **changes):
    benchmark = load_benchmark(name)
    for key, value in changes.items():
        setattr(benchmark, key, value)
    return benchmark


def made(**values):
    return Benchmark(**{"title": "t", "path": "d", "source": "here", "name": "made", **values})


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def draw(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path)


def prompts(rows):
    return [prompt_text(row.group.prompt) for row in rows]


def fails(benchmark, path, *said, **options):
    with pytest.raises(DataError) as error:
        read_benchmark(benchmark, path, **options)
    for one in said:
        assert one in str(error.value), str(error.value)


def lr_files(tmp_path):
    """Four images of which two are of the test split; entries of other splits have an id and nothing else."""
    off = [{"id": i, "active": False} for i in range(4)]
    base = {"date_added": 1.5, "people_id": 0, "active": True}
    asked = [
        {
            "id": 1,
            "img_id": 1,
            "type": "rural_urban",
            "question": "Is it a rural or an urban area",
            "answers_ids": [1],
        },
        {"id": 2, "img_id": 1, "type": "count", "question": "How many buildings are there?", "answers_ids": [2]},
        {"id": 3, "img_id": 3, "type": "presence", "question": "Is a road present?", "answers_ids": [4]},
        {"id": 4, "img_id": 3, "type": "comp", "question": "Are there more roads than farms?", "answers_ids": [3]},
    ]
    said = [(1, 1, "rural"), (2, 2, "17"), (3, 4, "no"), (4, 3, "yes")]
    answers = [{"id": i, "question_id": q, "answer": text, **base} for i, q, text in said]
    images = [
        off[0],
        {"id": 1, "questions_ids": [1, 2], "original_name": "S2_1.tif", **base},
        off[2],
        {"id": 3, "questions_ids": [3, 4], "original_name": "S2_3.tif", **base},
    ]
    root = tmp_path / "RSVQA_LR"
    write(root / "LR_split_test_questions.json", {"questions": [off[0], *({**base, **one} for one in asked)]})
    write(root / "LR_split_test_answers.json", {"answers": [off[0], *answers, {"id": 5, "active": False}]})
    write(root / "LR_split_test_images.json", {"images": images})
    for i in (1, 3):
        draw(root / "Images_LR" / f"{i}.tif", i, width=64, height=64)
    return root


def change(file, key, place, **values):
    held = json.loads(file.read_text())
    held[key][place] |= values
    write(file, held)
