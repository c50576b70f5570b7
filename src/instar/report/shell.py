"""What every page is in: one file that needs nothing else, its colours, its script and the policy that allows no other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import instar
from instar.report import plots

if TYPE_CHECKING:
    import jinja2


def environment() -> jinja2.Environment:
    """The templates of this package. Whatever they print is escaped; a name that they lack is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("instar.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def page(template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any) -> str:
    """A page as text from a template that extends `shell.html`.

    styles, scripts: files among the templates that this page has beyond `style.css` and `page.js`. values: what it prints.
    """
    from markupsafe import Markup

    templates = environment()
    colours = {"light": plots.LIGHT, "dark": plots.DARK, "series_light": plots.SERIES_LIGHT, "series_dark": plots.SERIES_DARK}
    style = "".join(templates.get_template(name).render(colours) for name in ("style.css", *styles))
    script = "".join(_text(name) for name in ("page.js", *scripts))
    return templates.get_template(template).render(
        version=instar.__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        inline=lambda plot: Markup(plot.inline),
        **values,
    )


def _text(name: str) -> str:
    return resources.files("instar.report").joinpath("templates", name).read_text("utf-8")
