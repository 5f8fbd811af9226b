"""Stored rows: read from the cache while nothing has changed, else written anew."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from helpers import ROOT
from helpers.captioned_rows import write_jsonl

from rs_rlhf.data.row_cache import stored_rows
from rs_rlhf.errors import DataError

FEATURES = datasets.Features({"text": datasets.Value("string")})
READING = {"image_root": None, "columns": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keeps the data sets' cache out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def texts_of(data):
    for row in data:
        if row.error is not None:
            raise row.error
        yield {"text": row.texts[0]}


def texts(path, version=1):
    return stored_rows(texts_of, FEATURES, str(path), None, READING, version)


def test_rows_are_stored_until_something_changes(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"caption": "x"}, {"caption": "y"})
    first = texts(file)
    assert first["text"][:] == ["x", "y"]
    assert texts(file)._fingerprint == first._fingerprint != texts(file, version=2)._fingerprint
    write_jsonl(file, {"caption": "z"})
    assert texts(file)["text"][:] == ["z"]


def test_a_row_that_cannot_be_used_is_raised_as_it_is(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"caption": "x"}, {"caption": ""})
    with pytest.raises(DataError) as error:
        texts(file)
    assert error.value.key == "caption" and "a.jsonl, row 1" in error.value.where


def modes(rows):
    """The modes of the folders, from the cache's own down, that a stored file lies in."""
    file = Path(rows.cache_files[0]["filename"])
    return [stat.S_IMODE(folder.stat().st_mode) for folder in file.parents if "rs-rlhf-" in str(folder)]


def test_stored_rows_can_be_read_by_their_owner_alone(tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "a.jsonl", {"caption": "x"})
    umask = os.umask(0)
    try:
        assert modes(texts(file))[-1] == 0o700
        folder = tmp_path / "cache" / f"rs-rlhf-{os.getuid()}"
        folder.chmod(0o755)
        assert modes(texts(file))[-1] == 0o700 and Path(texts(file).cache_files[0]["filename"]).is_relative_to(folder)
    finally:
        os.umask(umask)


@pytest.mark.parametrize("how", ["off", "link", "other"])
def test_rows_are_stored_for_this_process_if_switched_off_or_the_folder_is_not_ours(tmp_path, monkeypatch, capfd, how):
    folder = tmp_path / "cache" / f"rs-rlhf-{os.getuid()}"
    if how == "off":
        monkeypatch.setenv("RS_RLHF_CACHE", "0")
    else:
        folder.parent.mkdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere") if how == "link" else folder.mkdir()
    if how == "other":
        folder.chmod(0o777)
        monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as on file systems without modes
    rows = texts(write_jsonl(tmp_path / "a.jsonl", {"caption": "x"}))
    assert rows["text"][:] == ["x"]
    assert "rs-rlhf-rows-" in rows.cache_files[0]["filename"] and modes(rows)[-1] == 0o700
    assert ("is not this user's alone" in capfd.readouterr().err) == (how != "off")
    assert not [*folder.glob("*")] and not [*tmp_path.glob("elsewhere/*")]


TEMPORARY = """
import os, sys, tempfile
from pathlib import Path
from rs_rlhf.data.row_cache import _temporary
folder = Path(_temporary().name)
(folder / "rows.arrow").write_bytes(bytes(1000))
print(folder, flush=True)
sys.stdin.read()
"""


def test_rows_of_killed_processes_are_removed_and_those_of_others_stay(tmp_path):
    def start():
        env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", TEMPORARY], env=env, stdin=-1, stdout=-1, text=True)
        return process, Path(process.stdout.readline().strip())

    (killed, left), (runs, kept) = start(), start()
    killed.kill()
    killed.wait()
    assert left.is_dir()
    last, folder = start()
    assert not left.exists() and (kept / "rows.arrow").exists() and (folder / "rows.arrow").exists()
    for process in (runs, last):
        process.communicate()
    assert not [*tmp_path.iterdir()]
