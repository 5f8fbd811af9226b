"""The table of results: the rules of measures, and our figure beside a published one of the same name."""

import json

from helpers import picture

from rs_rlhf.cli import main as cli
from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.results import HEADER, read_results, results_table, thumbnail_of
from rs_rlhf.models.tiny_clip import save_tiny_clip


def test_retrieval_is_printed_by_both_rules_with_the_published_figures_of_the_right_one(tmp_path, capsys):
    captions = [["many trees .", "a pond ."], ["many trees ."], ["a port .", "many trees ."]]
    lines = [{"image": f"{i}.png", "captions": own} for i, own in enumerate(captions)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in range(3):
        picture(i, 32, 32).save(tmp_path / f"{i}.png")
    save_tiny_clip(tmp_path / "clip", sorted({text for own in captions for text in own}), image_size=32, max_length=24)
    figure = "{model: other, metric: text_to_image_R@5_distinct, value: 12.5, source: arXiv}"
    declared = f"title: t\ntask: retrieval\nlayout: images\npath: rows.jsonl\nsource: here\npublished: [{figure}]\n"
    (tmp_path / "found.yaml").write_text(declared)
    options = ["--model", tmp_path / "clip", "--model_type", "clip", "--task", tmp_path / "found.yaml"]
    options += ["--data_root", tmp_path, "--out", tmp_path / "out"]
    assert cli.main(["eval", "run", *map(str, options)]) == 0
    printed = capsys.readouterr().out
    results = read_results(tmp_path / "out")
    figures = results["tasks"]["found"]
    assert (figures["texts"], figures["distinct_texts"]) == (5, 3)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results_table(results).splitlines()]
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in table}
    other = rows["found"]["other figures"]
    assert "text_to_image_R@1 " in other and "text_to_image_R@1_distinct " in other
    for measure, rule in figures["rules"].items():
        assert f"↳ {measure}: {rule}" in rows and measure in printed
    published = rows["↳ published: other"]
    assert published["accuracy"] == "12.5% (text_to_image_R@5_distinct)"
    assert published["other figures"] == "text_to_image_R@5_distinct 100.0% here"
    assert results_table(results) in (tmp_path / "out" / "results.md").read_text()


def test_published_figures_of_retrieval_name_the_rule_they_were_measured_by():
    published = load_benchmark("rsicd-retrieval").published
    assert published and all(one["metric"].endswith("_distinct") for one in published)


def test_questions_left_out_for_their_boxes_are_counted_in_the_results(tiny_vlm, tmp_path, capsys):
    boxes = [[0, 0, 8, 8], [0, 0, 500, 8], [4, 4, 12, 12]]
    lines = [{"image": "a.png", "prompt": "Where is it?", "boxes": [box]} for box in boxes]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture(0, 56, 56).save(tmp_path / "a.png")
    declared = "title: t\ntask: grounding\nlayout: rows\npath: rows.jsonl\nsource: here\nmax_new_tokens: 4\n"
    (tmp_path / "boxes.yaml").write_text(declared)
    options = [
        "--model",
        tiny_vlm,
        "--task",
        tmp_path / "boxes.yaml",
        "--data_root",
        tmp_path,
        "--out",
        tmp_path / "o",
    ]
    assert cli.main(["eval", "run", *map(str, options)]) == 0
    printed = capsys.readouterr().out
    assert "boxes: 1 of 3 questions left out" in printed and "rows.jsonl, line 2" in printed
    figures = read_results(tmp_path / "o")["tasks"]["boxes"]
    assert (figures["n"], figures["error_rows"]) == (2, 1) and "error_rows 1" in printed


def test_a_results_folder_does_not_say_which_hosts_may_be_asked():
    figures = {"settings": {"reading": {"image_hosts": ["localhost"]}}}
    picture, why = thumbnail_of({"image": "http://localhost:9/a.png"}, figures)
    assert picture is None and "not in allowed_hosts" in why
