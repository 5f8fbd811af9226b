"""Evaluation folders in the documented layout, written by hand."""

import json


def records(right, *, images=None, output="an answer", **more):
    """Records of generated answers, right where `right` says so; questions of two types in turn."""
    return [
        {
            "id": f"q{i}",
            "prompt": f"Question {i}?",
            "output": f"{output} {i}",
            "answer": f"answer {i}",
            "references": [f"class {i}"],
            "types": [("count", "presence")[i % 2]],
            "strict": bool(own),
            "upstream_compat": None,
            "image": None if images is None else images[i % len(images)],
            "pixels": [84, 56],
            "seconds": 0.1,
            **{key: values[i] for key, values in more.items()},
        }
        for i, own in enumerate(right)
    ]


def write_run(folder, tasks, model="org/model", **figures):
    """Writes an output folder in the documented layout; `figures` go to every task."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"model": model, "model_type": "vlm", "tasks": {}, "versions": {"transformers": "5.17.0"}}
    for task, own in tasks.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in own)
        (folder / f"samples_{task}.jsonl").write_text(lines, encoding="utf-8")
        right = [record["strict"] for record in own if "strict" in record]
        known = {"n": len(own), "dataset_hash": f"hash of {task}", "metric_version": 1, "seed": 0}
        known |= {"pixel_budget": [3136, 9408], "settings": {"model": model, "temperature": 0.0}, "published": []}
        if right:
            known["accuracy"] = sum(map(bool, right)) / len(right)
        results["tasks"][task] = known | figures
    (folder / "results.json").write_text(json.dumps(results))
    return folder
