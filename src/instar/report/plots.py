"""From a matplotlib figure to what the page holds: an inline SVG that follows the page's colours, and files to take away.

Text stays text, identifiers and metadata are fixed, so that the same records give the same bytes. Texts from records are never
read as mathematics, and the SVG is rewritten as a tree, never as a string.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from instar.report import units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {"ink": "#1b1e23", "muted": "#5d646e", "line": "#dfe2e7", "paper": "#ffffff"}
DARK = {"ink": "#e7e9ec", "muted": "#a0a7b1", "line": "#343a43", "paper": "#14171b"}
# Okabe and Ito's colours, darkened for white paper and lightened for black, so that neighbours differ for every kind of sight.
SERIES_LIGHT = ("#0067a5", "#c8500a", "#00805e", "#a84b86", "#8a6d00", "#2f8fc4", "#7a4a2b", "#5b5fc7")
SERIES_DARK = ("#5eb1ea", "#f28e4b", "#3cc79d", "#e08fc0", "#e0bd3f", "#8fd0f5", "#c99a77", "#a3a6f2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()} | {
    value: f"var(--s{i})" for i, value in enumerate(SERIES_LIGHT)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "instar",
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.solid_capstyle": "round",
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": "none",
}
WIDTH, HEIGHT = 4.6, 3.5


@dataclass(frozen=True)
class Plot:
    """One drawing with what it shows: inline SVG for the page; SVG, PNG and CSV as files."""

    name: str
    title: str
    note: str
    inline: str
    svg: bytes
    png: bytes
    csv: str

    @property
    def files(self) -> list[tuple[str, str, str]]:
        """(label, file name, data URI) of each file."""
        found = (
            ("SVG", "svg", "image/svg+xml", self.svg),
            ("PNG", "png", "image/png", self.png),
            ("CSV", "csv", "text/csv", self.csv.encode()),
        )
        return [(label, f"{self.name}.{end}", data_uri(kind, content)) for label, end, kind, content in found]


def data_uri(kind: str, content: bytes) -> str:
    """A file inside a link."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Styles:
    """One colour and marker a method, the same in every plot of a page."""

    index: dict[str, int]

    @classmethod
    def of(cls, addresses: Sequence[str]) -> Styles:
        return cls({address: i for i, address in enumerate(dict.fromkeys(addresses))})

    def colour(self, address: str) -> str:
        return SERIES_LIGHT[self.index[address] % len(SERIES_LIGHT)]

    def slot(self, address: str) -> int:
        return self.index[address] % len(SERIES_LIGHT)

    def marker(self, address: str) -> str:
        return MARKERS[self.index[address] % len(MARKERS)]


def label(text: str, longest: int = 22) -> str:
    """A name as a label: printable and short."""
    text = units.printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def draw(name: str, title: str, note: str, csv: str, paint: Callable[[Figure, Any], None], height: float = HEIGHT) -> Plot:
    """Make a plot of one axes: `paint(figure, axes)`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, _STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts show it; only the PNG cannot
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        paint(figure, axes)
        # A level line above the axis is read more easily than an upright one beside it, and has room for a long title.
        axes.set_title(_wrapped(axes.get_ylabel()), loc="left", size=10, color=LIGHT["muted"])
        axes.set_ylabel("")
        axes.set_xlabel(_wrapped(axes.get_xlabel()))
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": label(title, 80)})
        figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
    return Plot(name, title, note, inline(svg.getvalue(), name, f"{title}. {note}"), svg.getvalue(), png.getvalue(), csv)


def inline(svg: bytes, name: str, description: str) -> str:
    """An SVG to stand in a page: colours become the page's variables, identifiers its own, metadata goes."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}metadata" or child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _attribute(key.rpartition("}")[2], value, name))
    page = next((e for e in root.iter() if e.get("id") == f"{name}-patch_1"), None)
    if page is not None:
        page.clear()  # the background of the figure: the page has its own
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ET.tostring(root, encoding="unicode")


def _wrapped(text: str, width: int = 52) -> str:
    """A long title on two lines, its closing bracket together."""
    if len(text) <= width:
        return text
    head, bracket, rest = text.rpartition(" (")
    return f"{textwrap.fill(head, width)}\n{bracket.strip()}{rest}" if head else textwrap.fill(text, width)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#([^)]*)\)", lambda m: f"url(#{name}-{m[1]})", value)
    if key == "style":
        value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
        return re.sub(r"#[0-9a-f]{6}", lambda m: _VARIABLES.get(m[0], m[0]), value)
    return value
