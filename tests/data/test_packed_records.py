"""WebDataset shards whose names, members or sizes are unusual: every text stays with its own image, or is an error."""

import json
import tarfile
from itertools import permutations

import pytest
from helpers.image_text_layouts import add, png

from rs_rlhf.data import packed_records
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.errors import DataError


def shard(path, *names):
    """Writes members whose text says the names of their own; returns the path."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            said = f"of {name.rpartition('.')[0]}"
            contents = {"txt": said.encode(), "caption": said.encode(), "json": json.dumps({"caption": said}).encode()}
            add(tar, name, contents.get(name.rpartition(".")[2].lower(), png(0)))
    return path


def read(path, **options):
    """`(texts, names of images)` of each row, or the error."""
    rows = open_image_texts(path, **options)
    return [row.error or (row.texts, [image["path"] for image in row.images]) for row in rows]


@pytest.mark.parametrize("suffix", ["txt", "json", "caption", "TXT"])
@pytest.mark.parametrize(
    "stems",
    [
        ["tile_12.34_56.1", "tile_12.98_57.2"],
        ["S2A_2019.05.01_tile", "S2A_2019.06.11_tile", "S2B_2019.05.01_tile"],
        ["a.5", "a.5.5", "a", "a.6"],
        ["scene.north", "scene.south", "scene"],
        ["./v1.0/a.b c", "./v1.0/a.ü"],
        ["0.1", "0.2"],
    ],
)
def test_dotted_names_keep_their_pairs(tmp_path, stems, suffix):
    names = [f"{stem}.{extension}" for stem in stems for extension in ("jpg", suffix)]
    expected = [([f"of {stem}"], [f"{stem}.jpg"]) for stem in stems]
    assert read(shard(tmp_path / "a.tar", *names)) == expected
    apart = [f"{stem}.{extension}" for extension in (suffix, "jpg") for stem in stems]
    found = read(shard(tmp_path / "b.tar", *apart))
    assert all(isinstance(row, DataError) or row in expected or not row[1] for row in found)
    if len({stem.partition(".")[0] for stem in stems}) == 1:  # neighbours in the shard
        assert found == expected


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["a.jpg", "a.seg.png", "a.json", "b.jpg", "b.seg.png", "b.json"], [["a.jpg", "a.seg.png"]]),
        (
            ["a.left.png", "a.right.png", "a.txt", "b.left.png", "b.right.png", "b.txt"],
            [["a.left.png", "a.right.png"]],
        ),
        (["a.0.png", "a.1.png", "a.txt", "b.1.png", "b.2.png", "b.txt"], [["a.0.png", "a.1.png"]]),
        (["d/a.png", "d/a.txt", "d/a.en.txt", "d/b.png", "d/b.txt"], [["d/a.png"]]),
        (["a.png", "a.txt", "a.depth.npy", "b.png", "b.txt"], [["a.png"]]),
    ],
)
def test_extensions_of_several_parts(tmp_path, names, images):
    first, second = read(shard(tmp_path / "a.tar", *names))
    key = names[0].partition(".")[0]
    assert first == ([f"of {key}"], images[0])
    assert second[0] == [f"of {key[:-1]}b"]


AMBIGUOUS = [
    ["a.5.png", "a.txt"],
    ["a.5.png", "a.6.png", "a.json"],
    ["a.5.png", "a.6.txt"],
    ["a.north.png", "a.south.txt"],
    ["a.png", "a.txt", "a.5.png"],
    ["a.png", "a.5.json"],
    ["a.5.png", "a.5.txt", "a.6.png"],
    ["a.north.png", "a.north.txt", "a.south.png", "a.txt"],
]


@pytest.mark.parametrize("names", AMBIGUOUS, ids=" ".join)
def test_what_could_be_paired_in_two_ways_is_an_error_and_the_rest_is_read(tmp_path, names):
    for order in permutations(names):
        found = read(shard(tmp_path / "a.tar", *order, "z.png", "z.txt"))
        assert found.pop() == (["of z"], ["z.png"])
        pairs = [row for row in found if not isinstance(row, DataError)]
        stems = [name.rpartition(".")[0] for name in order]
        whole = sorted({stem for stem in stems if stems.count(stem) == 2})
        assert pairs == [([f"of {stem}"], [f"{stem}.png"]) for stem in whole]
        errors = [row for row in found if isinstance(row, DataError)]
        assert len(errors) == len(set(stems)) - len(whole) and all("a.tar, row" in row.where for row in errors)
        assert "may be of the sample a or of one of its own" in errors[0].detail


def test_a_named_extension_says_what_an_extension_is(tmp_path):
    path = shard(tmp_path / "a.tar", "a.5.png", "a.6.txt", "b.5.png", "b.6.txt")
    assert read(path, columns={"text": "6.txt"}) == [(["of a.6"], ["a.5.png"]), (["of b.6"], ["b.5.png"])]


def test_files_of_json_that_differ_are_an_error_unless_one_is_the_samples_own(tmp_path):
    (error,) = read(shard(tmp_path / "a.tar", "a.png", "a.x.json", "a.y.json"))
    assert error.key == "caption"
    assert read(shard(tmp_path / "b.tar", "a.png", "a.x.json", "a.json")) == [(["of a"], ["a.png"])]


def special(name, kind, **values):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


SPECIAL = {
    "symbolic link": special("b.png", tarfile.SYMTYPE, linkname="a.png"),
    "hard link": special("b.png", tarfile.LNKTYPE, linkname="a.png"),
    "link out": special("b.png", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "device": special("b.png", tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": special("b.png", tarfile.FIFOTYPE),
    "link that is not read": special("b.xml", tarfile.SYMTYPE, linkname="a.png"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_members_that_are_no_plain_files_are_error_rows(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in "abc":
            add(tar, f"{name}.txt", f"of {name}".encode())
            if name == "b":
                tar.addfile(SPECIAL[kind])
            if name != "b" or SPECIAL[kind].name != "b.png":
                add(tar, f"{name}.png", png(0))
    first, error, last = read(tmp_path / "a.tar")
    assert first == (["of a"], ["a.png"]) and last == (["of c"], ["c.png"])
    assert error.where.endswith("a.tar, row 1") and SPECIAL[kind].name in error.detail


@pytest.mark.parametrize("name", ["/b", "../b", "x/../../b", "x/.."])
def test_names_that_lead_out_of_the_shard_are_error_rows(tmp_path, name):
    file = f"{name}/b" if name == "x/.." else name
    found = read(shard(tmp_path / "a.tar", "a.png", "a.txt", f"{file}.png", f"{file}.txt", "c.png", "c.txt"))
    assert [isinstance(row, DataError) for row in found] == [False, True, False] and name in found[1].detail


def test_a_sparse_member_is_an_error_row_however_large(tmp_path):
    size = 2**40
    # The old GNU form: a header with one piece of 512 bytes at the end of a file of a terabyte.
    info = special("b.png", tarfile.GNUTYPE_SPARSE, size=512)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", png(0))
        add(tar, "a.txt", b"of a")
        tar.fileobj.write(bytes(header) + bytes(512))
        tar.offset += 1024
        add(tar, "b.txt", b"of b")
        add(tar, "c.png", png(0))
        add(tar, "c.txt", b"of c")
    first, error, last = read(tmp_path / "a.tar")
    assert first == (["of a"], ["a.png"]) and last == (["of c"], ["c.png"])
    assert "b.png is sparse" in error.detail


@pytest.mark.parametrize(("name", "limit"), [("b.png", "DOWNLOAD_BYTES"), ("b.txt", "_TEXT_BYTES"), ("b.json", "")])
def test_large_members_are_error_rows_and_never_read(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(packed_records, limit or "_TEXT_BYTES", 2000)
    reads = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda tar, info: reads.append(info.name) or extract(tar, info)
    )
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in "abc":
            add(tar, f"{key}.txt" if name != "b.txt" else f"{key}.png", b"text" if name != "b.txt" else png(0))
            own = name.replace("b", key, 1)
            small = {"png": png(0), "txt": b"text", "json": b'{"a": 1}'}[name[2:]]
            add(tar, own, bytes(2001) if key == "b" else small)
    found = read(tmp_path / "a.tar")
    if name == "b.json":  # the shard has no images
        assert "b.json" in found[1].detail
    else:
        assert [isinstance(row, DataError) for row in found] == [False, True, False]
    assert found[1].detail.startswith(f"{name} has 2001 bytes, at most 2000")
    assert name not in reads and "a.txt" in reads


def test_headers_of_a_large_shard_of_one_name_are_enough(tmp_path):
    """Grid tiles share the name up to the first dot; their contents are read one by one."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(300):
            add(tar, f"tile.{i}.png", png(i % 5))
            add(tar, f"tile.{i}.txt", f"of tile.{i}".encode())
    rows = iter(open_image_texts(tmp_path / "a.tar"))
    assert next(rows).texts == ["of tile.0"] and sum(1 for _ in rows) == 299


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("size", [2**60, 2**80])
def test_a_header_that_states_a_huge_length_is_an_error(tmp_path, kind, size):
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, size
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataError):
        list(packed_records.packed_rows(tmp_path / "a.tar"))
