"""HTML pages from Jinja2 templates of the package, on one base page (`runs/base.html`).

Values are escaped. A page's `data` is embedded as JSON in which nothing can end the script that holds it, and its
script sets texts as text, never as HTML. Pages need no network: style, script and pictures are inside them.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


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
    made.globals["source"] = source
    made.filters["count"] = "{:,}".format
    return made


def source(path: str) -> Markup:
    """Returns a style sheet or script of the package as it is, such as `"runs/base.css"`."""
    return Markup(files("rs_rlhf").joinpath(path).read_text(encoding="utf-8"))
