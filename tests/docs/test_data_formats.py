"""Every example of `docs/data_formats.md` is read, and prints what it says."""

import re
import tarfile

import pytest
from helpers import ROOT
from helpers.image_text_layouts import add, png

from rs_rlhf.cli.main import main as program

TEXT = (ROOT / "docs" / "data_formats.md").read_text()
EXAMPLES = re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```\n\nprints `(.+?)`\n", TEXT, re.DOTALL)


def test_every_block_with_data_is_an_example():
    assert len(EXAMPLES) == len(re.findall(r"^```(?!bash)\w+$", TEXT, re.MULTILINE)) > 12


@pytest.mark.parametrize(("name", "content", "printed"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_example(name, content, printed, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    if name.endswith(".tar"):
        with tarfile.open(data / name, "w") as tar:
            for member, _, words in (line.partition(": ") for line in content.splitlines()):
                add(tar, member, words.encode() or png(len(member)))
    else:
        (data / name).write_text(content)
        for seed, image in enumerate(("a.png", "b.png")):
            (data / image).write_bytes(png(seed))
    path = data if name == "metadata.csv" else data / name
    assert program(["data", "convert", str(path), str(tmp_path / "out.jsonl"), "--to", "jsonl"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == printed
