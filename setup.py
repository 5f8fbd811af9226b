"""Builds a wheel that carries the declarations (YAML) and the score model of the box inside the package; everything
else is in `setup.cfg`.

In a checkout the declaration folders lie beside `rs_rlhf/`; a wheel has no such place, so they go to
`rs_rlhf/declared/`. `rs_rlhf.declarations.folder` looks in both.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("recipes", "reward_models", "eval", "accelerate_configs")


class BuildWithDeclarations(build_py):
    """Copies the YAML and Markdown files of the declaration folders, and their models, into the built package."""

    def run(self):
        """Builds the package, then adds declarations and models (an editable install reads the checkout's)."""
        super().run()
        if self.editable_mode:
            return
        for folder in FOLDERS:
            for source in sorted(Path(folder).rglob("*")):
                model = folder == "reward_models" and source.suffix in (".safetensors", ".json", ".jinja")
                if model or source.suffix in (".yaml", ".md"):
                    target = Path(self.build_lib) / "rs_rlhf" / "declared" / source
                    self.mkpath(str(target.parent))
                    self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithDeclarations})
