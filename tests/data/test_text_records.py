"""Records of text files: whatever is in them, offsets and bytes are those of the file, wherever chunks end."""

import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rs_rlhf.data import text_records as record_files
from rs_rlhf.data.text_records import check_text, csv_head, csv_records, json_records, jsonl_records, parsed_line
from rs_rlhf.errors import DataError

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.one_of(st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False))
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
SPACE = st.text(" \t\r\n", max_size=3)


@st.composite
def json_lists(draw):
    """A JSON list as text, white space and escapes at random, with its values."""
    values = draw(st.lists(VALUE, max_size=6))
    indent = st.sampled_from([None, 1])
    texts = [json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(indent)) for value in values]
    around = [draw(SPACE) + text + draw(SPACE) for text in texts]
    text = draw(SPACE) + "[" + (",".join(around) or draw(SPACE)) + "]" + draw(SPACE)
    return draw(st.sampled_from(["", "\ufeff"])) + text, values, texts


def same(a, b):
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@SETTINGS
@given(made=json_lists(), chunk=st.integers(1, 40))
def test_json_list(tmp_path, monkeypatch, made, chunk):
    text, values, texts = made
    monkeypatch.setattr(record_files, "CHUNK_BYTES", chunk)
    file, content = tmp_path / "x.json", text.encode()
    file.write_bytes(content)
    found = list(json_records(file))
    assert len(found) == len(values) and all(same(one.value, value) for one, value in zip(found, values, strict=True))
    assert [one.raw.decode() for one in found] == texts
    assert all(content[one.start : one.start + len(one.raw)] == one.raw for one in found)
    for first in range(len(found)):
        for last in range(first, len(found)):
            start, stop = found[first].start, found[last].start + len(found[last].raw)
            assert [r[:2] for r in json_records(file, start, stop)] == [r[:2] for r in found[first : last + 1]]


@SETTINGS
@given(made=json_lists(), chunk=st.integers(1, 40), cut=st.floats(0, 1))
def test_json_list_cut_short(tmp_path, monkeypatch, made, chunk, cut):
    text, values, _ = made
    monkeypatch.setattr(record_files, "CHUNK_BYTES", chunk)
    file = tmp_path / "x.json"
    file.write_bytes(text.rstrip().encode()[: int(cut * len(text.rstrip().encode()))])
    if file.read_bytes().decode(errors="replace").rstrip() == text.rstrip():
        return
    with pytest.raises(DataError):
        list(json_records(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', "holds '{\"a\": 1}' (str), expected a list of rows"),
        (b"[1, 2", "at byte 5 (expected a comma or the end of the list); the file is damaged or was cut short"),
        (b'[{"a": "unfinished', "not JSON in the row at byte 1 (Unterminated string starting at)"),
        (b"[1, 2] x", "not JSON in the row at byte 7 (text after the end of the list)"),
        (b"[1, 2,]" + b" " * 100, "not JSON in the row at byte 6 (Expecting value)"),
        (b"[1 2]" + b" " * 100, "not JSON in the row at byte 3 (expected a comma or the end of the list)"),
        (b'[1, {"a" 2}]' + b" " * 100, "not JSON in the row at byte 4 (Expecting ':' delimiter)"),
        (b"[" + b"[" * 200_000 + b"]" * 200_001, "not JSON in the row at byte 1 (nested too deeply)"),
        (b"[tru]" + b" " * 100, "not JSON in the row at byte 1 (Expecting value)"),
    ],
)
def test_damaged_json(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(json_records(file))


def test_damage_is_found_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "CHUNK_BYTES", 1000)
    file = tmp_path / "x.json"
    file.write_bytes(b'[{"a": 1} {"b": 2},' + b'{"c": 3},' * 100_000 + b"1]")
    whole = []
    monkeypatch.setattr(record_files._Window, "more", counting(record_files._Window.more, whole))
    with pytest.raises(DataError, match="expected a comma"):
        list(json_records(file))
    assert len(whole) == 1


def counting(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def test_not_utf8_in_json_is_kept_as_it_is(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b'["\xff\xfe", "ok"]')
    first, second = json_records(file)
    assert first.raw == b'"\xff\xfe"' and first.value == "\udcff\udcfe" and second.value == "ok" and second.start == 7


@SETTINGS
@given(
    values=st.lists(VALUE, max_size=8),
    blanks=st.lists(st.sampled_from(["", " ", "\t"]), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    bom=st.booleans(),
)
def test_json_lines(tmp_path, values, blanks, end, last, bom):
    lines = [json.dumps(value, ensure_ascii=False).replace("\x85", "\\u0085") for value in values]
    for i, blank in enumerate(blanks):
        lines.insert(2 * i, blank)
    content = ("\ufeff" * bom + end.join(lines) + end * last).encode()
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    found = list(jsonl_records(file))
    assert same([one.value for one in found], values)
    for i, one in enumerate(found):
        assert content[one.start : one.start + len(one.raw)] == one.raw
        stop = found[-1].start + len(found[-1].raw)
        again = list(jsonl_records(file, one.start, stop))
        assert [record[:3] for record in again] == [record[:3] for record in found[i:]]
        assert content[: one.start].count(b"\n") + 1 == one.line
        assert [r.raw for r in jsonl_records(file, one.start, one.start + len(one.raw), parse=False)] == [one.raw]


def test_damaged_line(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n' + b"[" * 100_000 + b"\n")
    values = [one.value for one in jsonl_records(file)]
    assert values[0] == {"a": 1} and values[2] == {"a": 3}
    assert re.match(r"not JSON \(Expecting value.*at byte 9 of the file; write one object a line", str(values[1]))
    assert isinstance(values[3], DataError) and parsed_line(b"1", 0) == 1


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@SETTINGS
@given(
    rows=st.lists(st.lists(FIELD, min_size=2, max_size=2), max_size=6),
    delimiter=st.sampled_from(",\t;"),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    bom=st.booleans(),
)
def test_csv(tmp_path, rows, delimiter, end, last, bom):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerow(["filepath", "the title"])
    for row in rows:
        writer.writerow(row)
    content = ("\ufeff" * bom + text.getvalue()).encode()
    content = content if last else content.removesuffix(end.encode())
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    head = csv_head(file)
    assert head.columns == ["filepath", "the title"] and content.startswith(head.raw) and head.delimiter == delimiter
    found = list(csv_records(file))
    assert [list(one.value.values()) for one in found] == [[text or None for text in row] for row in rows]
    for i, one in enumerate(found):
        stop = one.start + len(one.raw)
        assert content[one.start : stop] == one.raw
        assert list(csv_records(file, one.start, stop)) == [one] and list(csv_records(file, one.start)) == found[i:]
    assert head.raw + b"".join(one.raw for one in found) == content


def test_csv_quotes(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'filepath,title\na.png,5" pipe\n\nb.png,"two\n\nlines, ""quoted"""\nc.png,x,y\nd.png,ok\n')
    values = [one.value for one in csv_records(file)]
    assert values[0] == {"filepath": "a.png", "title": '5" pipe'} and values[1]["title"] == 'two\n\nlines, "quoted"'
    assert str(values[2]) == "3 fields, expected the 2 of the header (filepath, title); put texts with a ',' in quotes"
    assert values[3]["title"] == "ok"
    file.write_bytes(b'filepath,title\na.png,ok\na.png,"never closed\nb.png,x\n')
    with pytest.raises(DataError, match="ends inside the quoted field of the record at byte 24; the file was cut"):
        list(csv_records(file))
    file.write_bytes(b'filepath,title\na.png,"never closed\n' + b"b.png,some text\n" * 20_000)
    with pytest.raises(DataError, match=r"the record at byte 15 does not end \(field larger than field limit"):
        list(csv_records(file))
    file.write_bytes(b"filepath,title\na.png,x\ry\nb.png," + b"x" * 200_000 + b"\nc.png,ok\n")
    values = [one.value for one in csv_records(file)]
    assert str(values[0]).startswith("not CSV (new-line character seen") and "at byte 15 of the file" in str(values[0])
    assert str(values[1]).startswith("not CSV (field larger") and values[2] == {"filepath": "c.png", "title": "ok"}


def test_csv_heads(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_text("a, b; c\tt\n")
    assert csv_head(file).columns == ["a, b; c", "t"]
    file.write_text("title\ttitle\n")
    with pytest.raises(DataError, match="two columns are named 'title'; rename one of them"):
        csv_head(file)
    file.write_text('"never closed\n')
    with pytest.raises(DataError, match="ends inside the quoted field of the record at byte 0"):
        csv_head(file)
    file.write_text("\n\nx\n")
    assert csv_head(file).columns == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n".encode("utf-16"), "is not UTF-8 text (UTF-16, or no text at all); save it as UTF-8"),
        ("x.jsonl", b"PK\x03\x04\0\0", "is not UTF-8 text"),
        ("x.jsonl", b'[{"a": 1}]', "is a list, expected one object a line; rename it to .json"),
        ("x.json", b'{"a": 1}\n{"a": 2}\n', "is not a JSON list of rows; rename a file with one object a line to"),
    ],
)
def test_heads_of_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        check_text(tmp_path / name)


def test_columns_without_names_are_no_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",,image,caption\n0,5,a.png,x\n")
    assert [record.value for record in csv_records(path)] == [{"image": "a.png", "caption": "x"}]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_before_the_header_names_the_delimiter(tmp_path, mark, end):
    path = tmp_path / "t.csv"
    path.write_bytes(f"{mark}sep=;{end}image;caption{end}a.png;x, y{end}".encode())
    (record,) = csv_records(path)
    assert record.value == {"image": "a.png", "caption": "x, y"}
    assert csv_head(path).raw + record.raw == path.read_bytes()  # rows are written back as they were


def test_the_suffix_does_not_decide_the_delimiter(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("image,caption\na.png,x\n")
    assert [record.value for record in csv_records(path)] == [{"image": "a.png", "caption": "x"}]


def test_an_empty_field_is_null(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('image,caption\n,x\n"",y\na.png,\n')
    assert [tuple(record.value.values()) for record in csv_records(path)] == [
        (None, "x"),
        (None, "y"),
        ("a.png", None),
    ]
