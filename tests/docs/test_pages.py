"""Every block of README, docs/ and the recipes' READMEs is run or parsed; links and anchors lead somewhere.

A page's blocks run in their order, in a folder in which a very short `rs-rlhf demo` was run, from which pages start.
Recipes and benchmarks need real data: their commands are parsed only, and `test_recipes.py` runs them on tiny models.
"""

import json
import os
import shutil
import subprocess

import pytest
from helpers import ROOT, documents, warm
from helpers.documents import Block

PARSED = sorted([*ROOT.glob("recipes/*/README.md"), ROOT / "eval" / "README.md", ROOT / "CONTRIBUTING.md"])
FILES_OF_EXAMPLES = ROOT / "docs" / "data_formats.md"  # test_data_formats.py reads each of its blocks
RUN = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md")} - {FILES_OF_EXAMPLES})
FLAGS_OF_OTHERS = {"docs/coming_from.md", "docs/performance.md", "eval/README.md"}  # other projects' or scripts'
IN_DEFAULT = {"README.md", "docs/own_data.md"}  # the others that run something are in the slow tier


def name(path):
    return path.relative_to(ROOT).as_posix()


def tiered(path):
    slow = any(block.runs for block in documents.blocks(path)) and name(path) not in IN_DEFAULT
    return pytest.param(path, id=name(path), marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a user, whose `rs-rlhf` and `python` are children of the warm process, launched ones too."""
    env = warm.launching(tmp_path_factory.mktemp("programs"))
    programs = os.path.dirname(env["PYTHON_EXEC"])
    return {**env, "PATH": f"{programs}{os.pathsep}{env['PATH']}", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, environment):
    """A folder with `demo_output`, made by a very short demo."""
    folder = tmp_path_factory.mktemp("pages")
    steps = ["--captioner_steps", "2", "--reward_steps", "2", "--grpo_steps", "2", "--batch_size", "8"]
    scenes = ["--train_scenes", "36", "--validation_scenes", "24"]
    output = warm.run(["demo", *steps, *scenes], cwd=folder, env=environment, timeout=600, check=0).stdout
    first = output.partition("[2/7]")[0]
    assert first.count(" scene, its own captions marked *") == 3, "the model in the box ranks before anything is made"
    assert "| all |" in output and "image-shuffle gap" in output and "| GRPO step |" in output
    assert "| best of n, base policy: score, n = 8 |" in output
    return folder


def test_the_demo_leaves_its_picture_and_refuses_other_folders(demo, tmp_path):
    from PIL import Image

    assert Image.open(demo / "demo_output" / "demo.png").size[0] > 800
    found = json.loads((demo / "demo_output" / "demo.json").read_text())
    assert found["pairs"].keys() == {"before", "after"} and found["minutes"] > 0
    assert {"base policy", "with GRPO", "best of n, base policy: score, n = 8"} <= {
        row["what"] for row in found["policy"]
    }
    (tmp_path / "mine.txt").write_text("keep me")
    done = warm.run(["demo", "--output_dir", str(tmp_path)], cwd=ROOT, check=1)
    assert "is not empty and was not made by the demo" in done.stderr
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("path", [tiered(path) for path in RUN])
def test_the_blocks_of_a_page_do_what_they_say(path, request, tmp_path, environment):
    found = documents.blocks(path)
    if any(block.runs for block in found):
        shutil.copytree(request.getfixturevalue("demo"), tmp_path, dirs_exist_ok=True)
    for block in found:
        where = f"{name(path)}, line {block.line}"
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.runs:
            assert block.expected, f"{where}: what does it print?"
            printed = run(block, tmp_path, environment, where)
            text = documents.missing(block, printed)
            assert text is None, f"{where}: {text!r} is not in its place in\n{printed[-3000:]}"
        else:
            documents.parse(block)


def run(block, folder, environment, where):
    """Runs a block, and returns what it prints."""
    if block.language == "python":
        return warm.run(["-c", block.text], cwd=folder, env=environment, timeout=600, check=0).stdout
    command = ["bash", "-e", "-c", block.text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{where}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.mark.parametrize("path", PARSED, ids=name)
def test_the_commands_of_a_recipe_are_known_to_their_parsers(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = documents.blocks(path)
    told = [command for block in found for command in documents.parse(block)]
    assert told or path.parent == ROOT or path.parent.name == "eval"


@pytest.mark.parametrize("path", [*RUN, *PARSED, FILES_OF_EXAMPLES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere_and_every_block_has_a_language(path):
    assert documents.broken_links(path) == []
    assert [block.line for block in documents.blocks(path) if not block.language] == []


@pytest.mark.parametrize("path", [*RUN, *PARSED, FILES_OF_EXAMPLES], ids=name)
def test_commands_and_flags_in_sentences_are_known(path):
    from rs_rlhf.cli.main import COMMANDS

    spans = documents.spans(path)
    for words in (span.split() for span in spans if span.startswith("rs-rlhf ")):
        if "COMMAND" not in words:
            documents.check_flags(words[1:])
    if name(path) not in FLAGS_OF_OTHERS:
        known = {flag for command in COMMANDS for flag in documents.flags_of(command)} | {"--debug"}
        said = {span.split()[0].partition("=")[0] for span in spans if span.startswith("--")}
        assert said <= known


def test_the_readme_is_one_screen_and_keeps_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    first = next(block for block in documents.blocks(ROOT / "README.md") if "make " in block.text)
    assert [command[:2] for command in documents.parse(first)][-2:] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/README.md")), ids=name)
def test_a_recipe_s_readme_is_one_screen(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 60


@pytest.mark.parametrize(
    ("text", "printed", "missed"),
    [
        ("a  # -> one\nb  # -> two", "one two", None),
        ("a  # -> two\nb  # -> one", "one two", "one"),
        ("a  # -> [[…, …]]", "[[1.5, 2]]", None),
        ("a  # -> [[…, …]]", "[1.5, 2]", "[[…, …]]"),
    ],
)
def test_what_a_block_prints_is_found_in_order(text, printed, missed):
    assert documents.missing(Block(1, "bash", text, None, None), printed) == missed


@pytest.mark.parametrize(
    "text",
    [
        "rs-rlhf scor --input a",
        "rs-rlhf score --inputs a",
        "for i in 1 2; do rs-rlhf grpo --config aid-rsicd-tiny/grpo --no_such_flag 3; done",
        "accelerate launch -m rs_rlhf score --input a --output b --modle c",
        "make tset",
        "if rs-rlhf env; then",
    ],
)
def test_a_wrong_command_of_a_parsed_block_is_found(text, monkeypatch, tmp_path):
    from rs_rlhf.errors import RSRLHFError

    monkeypatch.chdir(tmp_path)
    with pytest.raises((RSRLHFError, KeyError, AssertionError, subprocess.CalledProcessError)):
        documents.parse(Block(1, "bash", text, None, "a test"))


def test_the_reference_has_every_command_and_help_for_every_option():
    from rs_rlhf.cli.main import COMMANDS

    hooks = documents.script(ROOT / "docs" / "hooks.py")
    page = hooks.commands()
    for command in COMMANDS:
        section = page.partition(f"\n## rs-rlhf {command}\n")[2].partition("\n## ")[0]
        assert section, command
        for action in hooks.parser_of(command)._actions[1:]:
            (line,) = [line for line in section.splitlines() if hooks.row(action) == line]
            assert line.rpartition("` | ")[2].strip(" |"), f"{command}: {action.dest} has no help"


def test_the_picture_is_what_its_script_draws():
    path = ROOT / "docs" / "images" / "way.py"
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == documents.script(path).drawn()
