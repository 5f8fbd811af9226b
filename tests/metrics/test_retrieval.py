"""Zero-shot classification and retrieval: figures made by hand, ties, several captions."""

import json

import numpy as np
import pytest

from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.metrics import retrieval
from rs_rlhf.metrics.intervals import wilson_interval
from rs_rlhf.metrics.retrieval import packed, rank_retrieval, retrieval_figures, zero_shot_figures, zero_shot_record


def raw(image, *texts, captions=None):
    names = captions or [f"{image}{text}" for text in texts]
    return {
        "image_features": packed(np.array(image)),
        "text_features": [packed(np.array(text)) for text in texts],
        "captions": names,
        "truncated": 0,
    }


def test_a_record_ranks_the_classes_and_ties_go_by_place():
    classes = np.eye(6, dtype=np.float32)
    image = np.array([0.1, 0.5, 0.3, 0.5, 0.2, 0.0], np.float32)
    names = ["a", "b", "c", "d", "e", "f"]
    records = {name: zero_shot_record(image, classes, names, name) for name in names}
    assert {name: one["rank"] for name, one in records.items()} == {"b": 1, "d": 2, "c": 3, "e": 4, "a": 5, "f": 6}
    assert records["d"]["answer"] == "b" and not records["d"]["strict"] and records["b"]["strict"]
    assert [name for name, _ in records["a"]["scores"]] == ["b", "d", "c", "e", "a"]
    assert records["a"]["scores"][2] == ["c", pytest.approx(0.3)]
    json.dumps(records)
    with pytest.raises(DataError, match="'g' is none of the 6 names"):
        zero_shot_record(image, classes, names, "g")


def test_figures_of_classification_by_hand():
    ranks = {"port": [1, 1, 2, 6], "lake": [1], "dune": [5]}
    records = [{"rank": rank, "references": [name]} for name, own in ranks.items() for rank in own]
    figures = zero_shot_figures(records)
    assert figures["n"] == 6 and figures["accuracy"] == 0.5
    assert figures["metrics"] == pytest.approx(
        {"top1": 3 / 6, "top5": 5 / 6, "mean_class_accuracy": (0.5 + 1 + 0) / 3}
    )
    assert figures["interval"] == list(wilson_interval(3, 6))
    assert figures["intervals"]["top5"] == list(wilson_interval(5, 6))
    assert figures["classes"]["port"] == {"n": 4, "accuracy": 0.5, "interval": list(wilson_interval(2, 4))}
    with pytest.raises(ValueError, match="no records"):
        zero_shot_figures([])


def test_ranks_by_hand_with_several_captions():
    # Images are the axes, so a text's cosines with the images are its own numbers.
    raws = [
        raw([1, 0, 0], [0.9, 0.1, 0.2], [0.3, 0.8, 0.1]),
        raw([0, 1, 0], [0.6, 0.5, 0.7], [0.1, 0.2, 0.15]),
        raw([0, 0, 1], [0.5, 0.4, 0.3]),
    ]
    records = rank_retrieval(raws)
    # Image 1 has text cosines 0.1, 0.8, 0.5, 0.2, 0.4: its best caption (0.5) comes after 0.8. Image 2: 0.2, 0.1, 0.7,
    # 0.15, 0.3: its own (0.3) comes after 0.7.
    assert [one["image_to_text_rank"] for one in records] == [1, 2, 2]
    assert [one["text_to_image_ranks"] for one in records] == [[1, 2], [3, 1], [3]]
    assert all(not {"captions", "image_features", "text_features"} & set(one) for one in records)
    figures = retrieval_figures(records)
    expected = {"image_to_text_R@1": 1 / 3, "image_to_text_R@5": 1, "image_to_text_R@10": 1}
    expected |= {"text_to_image_R@1": 2 / 5, "text_to_image_R@5": 1, "text_to_image_R@10": 1}
    expected["mean_recall"] = (1 / 3 + 2 / 5 + 4) / 6
    expected |= {f"{name}_distinct": value for name, value in expected.items()}  # no text is shared
    assert figures["metrics"] == pytest.approx(expected)
    assert (figures["n"], figures["texts"], figures["shared_captions"], figures["truncated"]) == (3, 5, 0, 0)
    assert figures["intervals"]["image_to_text_R@1"] == list(wilson_interval(1, 3))
    low, high = figures["intervals"]["text_to_image_R@1"]
    assert 0 <= low < 2 / 5 < high <= 1
    assert retrieval_figures(records)["intervals"] == figures["intervals"]


def test_a_caption_of_two_images_counts_for_the_first_even_if_its_vectors_differ_in_the_last_bits():
    same = "many trees ."
    raws = [
        raw([1, 0], [0.5, 0.5], captions=[same]),
        raw([0, 1], [0.5, np.nextafter(np.float32(0.5), np.float32(1))], captions=[same]),
        raw([1, 0], [0.6, 0.1], captions=["a port ."]),  # the same picture as the first
    ]
    records = rank_retrieval(raws)
    # For image 1 both copies of the shared caption are equal: the first one's place comes before its own.
    assert [one["image_to_text_rank"] for one in records] == [2, 2, 1]
    # The shared caption has equal cosines with all three images: they are ranked by place.
    assert [one["text_to_image_ranks"] for one in records] == [[1], [2], [2]]
    assert [one["shared_captions"] for one in records] == [1, 1, 0]
    assert retrieval_figures(records)["shared_captions"] == 2


def test_the_two_rules_differ_by_hand_where_captions_are_shared():
    # Text vectors are their cosines with the images, which are the axes.
    texts = {"trees": [0.9, 0.8, 0.1, 0.0], "a port": [0.2, 0.3, 0.7, 0.1], "a pond": [0.1, 0.6, 0.2, 0.5]}
    of = [["trees", "trees"], ["trees", "a pond"], ["a port"], ["a pond", "trees"]]
    raws = [raw([float(i == k) for k in range(4)], *map(texts.get, own), captions=own) for i, own in enumerate(of)]
    records = rank_retrieval(raws)
    # Each caption is a query of its own: trees ranks the images 0, 1, 2, 3; a pond 1, 3, 2, 0.
    assert [one["text_to_image_ranks"] for one in records] == [[1, 1], [2, 1], [1], [2, 4]]
    # The seven captions by place; image 0: 0.9 first; image 1: the trees of image 0 come before its own; image 3: the
    # pond of image 1 comes before its own.
    assert [one["image_to_text_rank"] for one in records] == [1, 3, 1, 2]
    # Each of the three texts is one query, and right is the best of all images that have it.
    assert [one["text_to_image_ranks_distinct"] for one in records] == [[1], [1], [1], []]
    assert [one["image_to_text_rank_distinct"] for one in records] == [1, 1, 1, 1]
    figures = retrieval_figures(records)
    measures = figures["metrics"]
    assert (figures["texts"], figures["distinct_texts"], figures["shared_captions"]) == (7, 3, 6)
    assert measures["text_to_image_R@1"] == 4 / 7 and measures["text_to_image_R@1_distinct"] == 1
    assert measures["image_to_text_R@1"] == 2 / 4 and measures["image_to_text_R@1_distinct"] == 1
    assert measures["mean_recall"] == pytest.approx((4 / 7 + 1 / 2 + 4) / 6) and measures["mean_recall_distinct"] == 1
    assert set(figures["intervals"]) == set(measures)
    assert all(0 <= low <= high <= 1 for low, high in figures["intervals"].values())
    assert {name.replace("k", "1") for name in figures["rules"]} == {"R@1", "R@1_distinct"}


def test_the_rule_of_distinct_texts_does_not_depend_on_the_order_of_the_images():
    vectors = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    texts = {f"text {i % 9}": vectors[20 + i % 9] for i in range(9)}
    of = [[f"text {(i * k) % 9}" for k in (1, 2, 4)] for i in range(20)]
    raws = [raw(list(vectors[i]), *[list(texts[name]) for name in own], captions=own) for i, own in enumerate(of)]

    def distinct(order):
        measures = retrieval_figures(rank_retrieval([raws[i] for i in order]))["metrics"]
        return {name: value for name, value in measures.items() if name.endswith("_distinct")}

    assert distinct(range(20)) == pytest.approx(distinct(range(19, -1, -1)))
    doubled = [{**one, "captions": one["captions"] * 2, "text_features": one["text_features"] * 2} for one in raws]
    found = retrieval_figures(rank_retrieval(doubled))["metrics"]
    assert {name: found[name] for name in distinct(range(20))} == distinct(range(20))


def test_blocks_give_what_the_whole_matrix_gives(monkeypatch):
    # Small whole numbers: cosines are exact, and many are equal.
    vectors = np.random.default_rng(0).integers(-3, 4, (90, 4)).astype(np.float32)
    raws = [raw(list(vectors[i]), *[list(vectors[30 + 2 * i + k]) for k in (0, 1)]) for i in range(30)]
    whole = rank_retrieval(raws)
    monkeypatch.setattr(retrieval, "_BLOCK", 70)
    assert rank_retrieval(raws) == whole
    scores = vectors[:30] @ vectors[30:].T
    for i, record in enumerate(whole):
        order = np.argsort(-scores[i], kind="stable").tolist()
        assert record["image_to_text_rank_distinct"] == record["image_to_text_rank"]  # no two texts are the same
        assert record["image_to_text_rank"] == 1 + min(order.index(2 * i), order.index(2 * i + 1))
        for k, rank in enumerate(record["text_to_image_ranks"]):
            assert rank == 1 + np.argsort(-scores[:, 2 * i + k], kind="stable").tolist().index(i)


def test_records_that_are_ranked_stay_and_mixed_ones_are_refused():
    raws = [raw([1, 0], [1, 0]), raw([0, 1], [0, 1])]
    records = rank_retrieval([{"id": "a", **raws[0]}, {"id": "b", **raws[1]}])
    assert [one["id"] for one in records] == ["a", "b"]
    assert rank_retrieval(json.loads(json.dumps(records))) == records
    with pytest.raises(ValueError, match="1 of 2 records are ranked already"):
        rank_retrieval([records[0], raws[1]])
    earlier = [{k: v for k, v in one.items() if not k.endswith("_distinct")} for one in records]
    with pytest.raises(OptionError, match="by one rule only"):
        rank_retrieval(earlier)
    with pytest.raises(ValueError, match="different lengths"):
        rank_retrieval([raw([1, 0], [1, 0]), raw([1, 0], [1, 0, 0])])
    with pytest.raises(ValueError, match="different models"):
        rank_retrieval([raw([1, 0, 0], [1, 0])])
