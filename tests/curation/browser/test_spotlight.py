"""Spotlight where it is not installed is one sentence."""

from importlib.util import find_spec

import pytest

from rs_rlhf.cli import main as cli


@pytest.mark.skipif(find_spec("renumics") is not None, reason="it is installed")
def test_what_is_missing_is_told(tmp_path, capsys):
    assert cli.main(["browse", str(tmp_path), "--in", "spotlight"]) == 1
    assert "pip install renumics-spotlight" in capsys.readouterr().err
