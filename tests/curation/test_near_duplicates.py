"""Pictures that are the same or look alike: the search against all pairs, and real files of many kinds."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import picture
from PIL import Image

from rs_rlhf.curation import near_duplicates
from rs_rlhf.curation.near_duplicates import (
    find_in_evaluation,
    group_near_duplicates,
    look_at_evaluation,
    look_at_rows,
    near_groups,
    near_pairs,
    read_rows,
)
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.errors import DataError
from rs_rlhf.imagery.sources import ImageOptions

imagehash = pytest.importorskip("imagehash", reason='imagehash is not installed (pip install "rs-rlhf[curation]")')


def scene(seed, size=256):
    """A smooth picture, as photographs are: its perceptual hash survives saving and scaling."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def hashes(seed, count):
    """Hashes in loose clusters: some a few bits from others."""
    random = np.random.default_rng(seed)
    made = random.integers(0, 2**63, count, dtype=np.uint64) * np.uint64(2) + random.integers(0, 2, count, np.uint64)
    for i in range(count // 2, count):
        made[i] = made[random.integers(0, i)]
        for bit in random.choice(64, int(random.integers(0, 7)), replace=False):
            made[i] ^= np.uint64(1 << int(bit))
    return made


def chained(values, distance):
    """Groups by looking at all pairs, one after the other."""
    group = list(range(len(values)))
    for i, a in enumerate(values.tolist()):
        for j, b in enumerate(values.tolist()[:i]):
            if bin(a ^ b).count("1") <= distance and group[i] != group[j]:
                old, new = group[i], group[j]
                group = [new if one == old else one for one in group]
    first = {}
    return [first.setdefault(one, len(first)) for one in group]


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 7, 10])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_all_pairs(seed, distance):
    values = hashes(seed, 120)
    assert near_groups(values, distance).tolist() == chained(values, distance)


@pytest.mark.parametrize("distance", [0, 3, 5])
def test_pairs_between_two_sets_are_all_that_there_are(distance):
    values = hashes(7, 160)
    a, b = values[::2], values[1::2]
    found = {pair for i, j in near_pairs(a, b, distance) for pair in zip(i.tolist(), j.tolist(), strict=True)}
    differ = np.bitwise_count(a[:, None] ^ b[None])
    assert found == set(zip(*(own.tolist() for own in np.nonzero(differ <= distance)), strict=True)) and found


def test_links_are_joined_in_pieces(monkeypatch):
    values = hashes(1, 200)
    expected = near_groups(values, 4).tolist()
    monkeypatch.setattr(near_duplicates, "_PAIRS", 3)  # blocks of one row, joined after every few links
    assert near_groups(values, 4).tolist() == expected


def test_nothing_and_far_distances():
    assert near_groups(np.zeros(0, np.uint64), 4).tolist() == []
    with pytest.raises(ValueError, match="is 11, expected 0 to 10 bits"):
        near_groups(hashes(0, 4), 11)


def test_two_hundred_thousand_hashes_take_seconds_not_all_pairs():
    import time

    random = np.random.default_rng(0)
    values = random.integers(0, 2**63, 200_000, dtype=np.uint64)
    values[100_000:] = values[:100_000] ^ (np.uint64(1) << random.integers(0, 63, 100_000, np.uint64))
    start = time.process_time()
    groups = near_groups(values, 4)
    assert time.process_time() - start < 30
    assert groups.max() + 1 == 100_000 and (groups[:100_000] == groups[100_000:]).all()


def test_what_is_missing_is_told_with_the_extra(monkeypatch, tmp_path):
    source, ids, names = rows_of(tmp_path, {"a.png": encoded(scene(0))})
    monkeypatch.setitem(sys.modules, "imagehash", None)  # what an import of a package that is not there meets
    with pytest.raises(DataError, match=r'pip install "rs-rlhf\[curation\]"'):
        look_at_rows(source, source.units(2), ids, names, ImageOptions(), near=True)
    assert look_at_rows(source, source.units(2), ids, names, ImageOptions(), near=False)["error"].to_pylist() == [None]


# --- rows ----------------------------------------------------------------------------------------------------------


def rows_of(folder, files, rows=None):
    """Writes images and a JSONL of rows; returns the data, the rows' ids and the names of their images."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rows = rows or [{"image": name, "caption": f"picture {name}"} for name in files]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = pa.array([f"rows.jsonl:{i}" for i in range(len(rows))])
    return open_image_texts(folder / "rows.jsonl"), ids, pa.array([f"image {i}" for i in range(len(rows))])


def test_single_rows_are_read_from_their_units(tmp_path):
    for name, count in (("a", 7), ("b", 5)):
        lines = "".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    source = open_image_texts(tmp_path)
    wanted = ["a.jsonl:0", "a.jsonl:5", "a.jsonl:6", "b.jsonl:0", "b.jsonl:4"]
    for rows in (1, 3, 100):
        found = list(read_rows(source, source.units(rows), pa.array(wanted)))
        assert [at for at, _ in found] == [0, 1, 2, 3, 4]
        assert [row.texts[0] for _, row in found] == ["a 0", "a 5", "a 6", "b 0", "b 4"]
    for gone in ("a.jsonl:7", "b.jsonl:5", "c.jsonl:0"):
        with pytest.raises(DataError, match=f"has no row {gone} any more"):
            list(read_rows(source, source.units(3), pa.array([gone])))
    assert list(read_rows(source, source.units(3), pa.array([], pa.string()))) == []


@pytest.fixture
def looked(tmp_path):
    (tmp_path / "data").mkdir()
    files = {
        "a.png": encoded(scene(0)),
        "a_small.jpg": encoded(scene(0).resize((200, 200)), "JPEG", quality=70),
        "b.png": encoded(scene(1)),
        "a.bmp": encoded(scene(0), "BMP"),
        "red.png": encoded(Image.new("RGB", (9, 9), "red")),
        "blue.png": encoded(Image.new("RGB", (9, 9), "blue")),
        "broken.png": encoded(scene(2))[:100],
    }
    rows = [{"image": name, "caption": name} for name in files] + [{"images": ["a.png", "b.png"], "caption": "two"}]
    source, ids, names = rows_of(tmp_path / "data", files, rows)
    table = look_at_rows(source, source.units(3), ids, names, ImageOptions(), near=True, folder=tmp_path / "kept")
    return source, ids, names, table


def test_near_duplicates_of_real_files(looked):
    *_, table = looked
    groups = group_near_duplicates(table, 4).tolist()
    a, small, b, bmp, red, blue, broken, two = groups
    assert a == small == bmp and b != a and min(a, b) >= 0
    assert red == blue == broken == two == -1  # one colour says nothing, and several images are not one
    assert "truncated or corrupt" in table["error"].to_pylist()[6]
    assert len(table["contents"].to_pylist()[7]) == 2
    assert group_near_duplicates(table, 0).tolist()[3] == a


def test_what_was_found_is_kept_and_nothing_decoded_again(looked, tmp_path):
    source, ids, names, table = looked
    for file in (tmp_path / "data").iterdir():
        if file.suffix != ".jsonl" and file.name != "broken.png":
            file.write_bytes(encoded(scene(9)))  # would be seen
    (tmp_path / "data" / "broken.png").write_bytes(encoded(scene(2)))  # mended
    again = look_at_rows(source, source.units(3), ids, names, ImageOptions(), near=True, folder=tmp_path / "kept")
    found = {row["image_hash"]: row for row in again.to_pylist()}
    before = {row["image_hash"]: row for row in table.to_pylist()}
    assert {name for name in found if found[name] != before[name]} == {"image 6"}
    assert found["image 6"]["error"] is None
    assert not list((tmp_path / "kept").glob("*.tmp"))


def test_hashes_are_taken_where_only_contents_were(tmp_path):
    source, ids, names = rows_of(tmp_path, {"a.png": encoded(scene(0)), "b.png": encoded(scene(1))})
    nulls = []
    for near in (False, True, False):
        table = look_at_rows(source, source.units(9), ids, names, ImageOptions(), near=near, folder=tmp_path / "kept")
        assert set(table["image_hash"].to_pylist()) == {"image 0", "image 1"}
        nulls.append(table["hashes"].null_count)
    assert nulls[:2] == [2, 0]
    assert set(find_in_evaluation(table, near_duplicates.Evaluation(), None)) == set()


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    files = {f"{i}.png": encoded(picture(i)) for i in range(6)}
    source, ids, names = rows_of(tmp_path, files)
    monkeypatch.setattr(near_duplicates, "PART", 2)
    (tmp_path / "4.png").unlink()
    real, seen = near_duplicates.read_image, []

    def stopped(source, *others):
        seen.append(source)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return real(source, *others)

    monkeypatch.setattr(near_duplicates, "read_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        look_at_rows(source, source.units(9), ids, names, ImageOptions(), near=False, folder=tmp_path / "kept")
    kept = sum(len(pq.read_table(file)) for file in (tmp_path / "kept").iterdir())
    assert kept >= 2

    def counted(source, *others):
        seen.append("again")
        return real(source, *others)

    monkeypatch.setattr(near_duplicates, "read_image", counted)
    table = look_at_rows(source, source.units(9), ids, names, ImageOptions(), near=False, folder=tmp_path / "kept")
    assert len(table) == 6 and seen.count("again") == 6 - 1 - kept  # one is gone
    assert [row["image_hash"] for row in table.to_pylist() if row["error"]] == ["image 4"]


# --- evaluation sets -------------------------------------------------------------------------------------------------


def test_evaluation_images_are_found_by_pixels_bytes_and_looks(looked, tmp_path):
    *_, table = looked
    held = tmp_path / "held" / "test" / "river"
    held.mkdir(parents=True)
    (held / "same.bmp").write_bytes(encoded(scene(0), "BMP"))
    (held / "like.jpg").write_bytes(encoded(scene(1).resize((180, 180)), "JPEG", quality=80))
    (held / "broken.png").write_bytes(encoded(scene(2))[:100])
    given = f"{tmp_path / 'held'}:test"
    exact = look_at_evaluation([given], ImageOptions(), False)
    assert (exact.images, exact.unread, len(exact.hashes)) == (3, 1, 0)
    found = find_in_evaluation(table, exact, None)
    assert set(found) == {"image 0", "image 3", "image 7"}  # PNG, BMP, and the row with two images
    assert found["image 0"] == (f"{given} river/same.bmp", "same picture")
    near = look_at_evaluation([given], ImageOptions(), True)
    found = find_in_evaluation(table, near, 4)
    assert set(found) == {"image 0", "image 1", "image 2", "image 3", "image 7"}
    assert found["image 2"][0] == f"{given} river/like.jpg" and found["image 2"][1].endswith("of 64 bits differ")
    # Names that are hashes of bytes, as in scores, are found even where nothing can be decoded.
    import hashlib

    name = hashlib.sha256((held / "broken.png").read_bytes()).hexdigest()
    unread = table.slice(6, 1).set_column(0, "image_hash", pa.array([name]))
    assert find_in_evaluation(unread, exact, None) == {name: (f"{given} river/broken.png", "same picture")}


def test_images_that_need_a_choice_of_bands_are_compared_as_they_are_shown(tmp_path):
    wide = np.random.default_rng(0).integers(0, 4000, (40, 40), dtype=np.uint16)
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "PNG")
    source, ids, names = rows_of(tmp_path, {"wide.png": stream.getvalue()})
    (tmp_path / "held" / "a").mkdir(parents=True)
    Image.fromarray(wide).save(tmp_path / "held" / "a" / "copy.tif")
    encoded_rgb = encoded(scene(0))
    (tmp_path / "held" / "a" / "rgb.png").write_bytes(encoded_rgb)
    options = ImageOptions(stretch="percentile", image_root=str(tmp_path / "elsewhere"))
    evaluation = look_at_evaluation([str(tmp_path / "held")], options, False)
    assert (evaluation.images, evaluation.unread) == (2, 0)
    table = look_at_rows(source, source.units(1), ids, names, ImageOptions(stretch="percentile"), near=False)
    assert find_in_evaluation(table, evaluation, None)["image 0"][0].endswith("a/copy.tif")
