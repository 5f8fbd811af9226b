"""A wheel built from the source distribution carries the declarations, and works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from helpers import ROOT

from rs_rlhf import declarations

SOURCES = ["rs_rlhf", *declarations.FOLDERS, "setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"]
OPTIONAL = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]


def run(*command, cwd, **env):
    """Runs a command outside the checkout, without its path, and returns what it printed."""
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env={**plain, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` folder of a fresh environment with the wheel; the libraries are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout, dist = folder / "checkout", folder / "dist"
    checkout.mkdir()
    for name in SOURCES + [name for name in OPTIONAL if (ROOT / name).exists()]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "declared"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    dist.mkdir()
    run(sys.executable, "-c", build, dist, cwd=checkout)
    (sdist,) = dist.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    run(*pip, "wheel", *options, "--no-build-isolation", "-w", dist, sdist, cwd=folder)
    (wheel,) = dist.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    (binaries,) = [path for path in (folder / "venv").iterdir() if path.name in ("bin", "Scripts")]
    run(*pip, "--python", binaries / "python", "install", *options, wheel, cwd=folder)
    # A line of a .pth file adds a folder but follows no .pth file in it: an editable rs-rlhf there stays unseen.
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return binaries


def test_declarations_are_found_inside_the_package(installed, tmp_path):
    code = "import rs_rlhf; from rs_rlhf import declarations as d; print(rs_rlhf.__file__)\n"
    names = {kind: declarations.names(kind) for kind in declarations.KINDS}
    code += f"for kind, known in {names!r}.items():\n"
    code += "    assert d.names(kind) == known, (kind, d.names(kind))\n"
    code += "    print(d.folder(kind))\n"
    code += "    for name in known: print(d.find(kind, name))\n"
    lines = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    package = lines[0].removesuffix("__init__.py")
    assert str(ROOT) not in package
    assert all(line.startswith(f"{package}declared") for line in lines[1:])


@pytest.mark.parametrize("imported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_module_and_every_page_is_there(imported, installed, tmp_path):
    """Beside the modules of the checkout, which can be imported, the wheel has its pages, styles and `py.typed`."""
    code = "import importlib, pathlib, pkgutil, rs_rlhf\n"
    code += "root = pathlib.Path(rs_rlhf.__file__).parent\n"
    code += "found = [module.name for module in pkgutil.walk_packages(rs_rlhf.__path__, 'rs_rlhf.')]\n"
    if imported:
        code += "for name in found: name.endswith('__main__') or importlib.import_module(name)\n"
    code += "files = [path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file()]\n"
    code += "import json; print(); print(json.dumps([found, files]))"
    modules, files = json.loads(run(installed / "python", "-c", code, cwd=tmp_path).splitlines()[-1])
    package = ROOT / "rs_rlhf"
    paths = [path.relative_to(ROOT).with_suffix("") for path in package.rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"rs_rlhf"}
    assert set(modules) == names
    pages = [path for path in package.rglob("*") if path.suffix in (".html", ".css", ".js") or path.name == "py.typed"]
    assert pages and {path.relative_to(package).as_posix() for path in pages} <= set(files)
    declared = {name for name in files if name.startswith("declared/")}
    texts = {name for name in declared if name.endswith((".yaml", ".md"))}
    box = {path.relative_to(ROOT).as_posix() for path in (ROOT / "reward_models" / "aid-rsicd-tiny").rglob("*.*")}
    assert {f"declared/{name}" for name in box} >= declared - texts, "results and scripts stay in the checkout"
    assert box and {f"declared/{name}" for name in box} <= declared


def test_recipes_keep_their_readme(installed, tmp_path):
    code = "from rs_rlhf.declarations import folder; print(*folder('recipes').rglob('README.md'), sep='\\n')"
    lines = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert len(lines) == len(list((ROOT / "recipes").rglob("README.md")))


@pytest.mark.slow
def test_commands_run_from_another_folder_with_declarations_by_name(installed, tmp_path):
    assert "rs-rlhf" in run(installed / "rs-rlhf", "--version", cwd=tmp_path)
    run(installed / "rs-rlhf", "tiny-vlm", "model", "--max_pixels", "3136", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert (tmp_path / "model" / "config.json").is_file()
    run(installed / "rs-rlhf", "data", "scenes", "scenes", "--n_train", "1", "--n_validation", "8", cwd=tmp_path)
    asked = ["--model", "model", "--task", "scenes", "--data_root", ".", "--out", "out"]
    assert "| scenes | model | 8 |" in run(installed / "rs-rlhf", "eval", *asked, cwd=tmp_path)
    assert "rsvqa-lr" in run(installed / "rs-rlhf", "eval", "--list", cwd=tmp_path)
    best = ["--policy", "aid-rsicd-tiny/policy", "--score_model", "aid-rsicd-tiny", "-n", "2", "--max_new_tokens", "4"]
    told = run(installed / "rs-rlhf", "best-of-n", *best, *asked[2:-1], "best", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "best score" in told


def test_the_report_finds_its_page_in_the_wheel(installed, tmp_path):
    history = [{"step": step, "loss": 1.0 / (1 + step)} for step in range(3)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": history}))
    run(installed / "rs-rlhf", "report", ".", cwd=tmp_path)
    assert "loss" in (tmp_path / "report.html").read_text()
