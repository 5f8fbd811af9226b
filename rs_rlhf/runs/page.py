"""HTML pages from Jinja2 templates of the package, on one base page (`runs/base.html`).

Values are escaped. A page's `data` is embedded as JSON in which nothing can end the script that holds it, and its
script sets texts as text, never as HTML. Pages need no network: style, script, charts and pictures are inside them. No
other script is run, since a page names the hash of its own.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .charts.style import css

BLANK = "(blank)"


def render(template: str, **values: object) -> str:
    """Fills a template of the package in.

    Args:
        template (`str`): Its path in the package, such as `"runs/report.html"`; see the blocks of `runs/base.html`.
        **values: `title`, and what the template names. `data` is embedded as JSON.

    Raises:
        ValueError: `data` holds NaN or an infinite number.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("rs_rlhf", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    made.globals |= {"source": source, "colours": lambda: Markup(css())}
    made.filters |= {"count": "{:,}".format, "sha256": _hash, "words": words}
    return made


def source(*paths: str) -> Markup:
    """Returns style sheets or scripts of the package as they are, such as `"runs/base.css"`, one after the other."""
    return Markup("".join(files("rs_rlhf").joinpath(path).read_text(encoding="utf-8") for path in paths))


def words(text: str) -> str:
    """Returns a text as pages show it: one of which nothing would be seen is said to be blank."""
    return text if text.strip() else BLANK


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
