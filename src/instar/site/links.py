"""Pages that people wrote in the repository, brought to the site: links among them hold there too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from instar.errors import DataError
from instar.site import text

_FENCED = re.compile(r"(^ *(`{3,})[^`\n]*\n.*?^ *\2 *$)", re.S | re.M)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def moved(path: Path, root: Path, names: Mapping[Path, str]) -> str:
    """The page at `path` with its links as they are on the site.

    names: the place on the site of every file that has one. A link to what is only in the repository becomes the path there.
    Raises DataError for a link to nothing.
    """
    source = path.read_text("utf-8")
    parts, end = [], 0
    for fence in _FENCED.finditer(source):
        parts += [_linked(source[end : fence.start()], path, root, names), fence[0]]
        end = fence.end()
    return "".join([*parts, _linked(source[end:], path, root, names)])


def mentioned(path: Path) -> list[Path]:
    """The files that a page links to, in its order."""
    return [(path.parent / found[3].partition("#")[0]).resolve() for found in _LINK.finditer(path.read_text("utf-8"))]


def title(page: str) -> str:
    """The first heading, as plain words."""
    heading = re.search(r"^# +(.+)$", page, re.M)
    return re.sub(r"[`*]", "", heading[1]).strip() if heading else ""


def _linked(source: str, path: Path, root: Path, names: Mapping[Path, str]) -> str:
    here = PurePosixPath(names[path]).parent

    def replaced(found: re.Match[str]) -> str:
        image, words, target = found[1], found[2], found[3]
        place, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not place:
            return found[0]
        file = (path.parent / place).resolve()
        if file in names:
            return f"{image}[{words}]({os.path.relpath(names[file], here)}{'#' + anchor if anchor else ''})"
        if not file.exists():
            raise DataError(f"{path} links to {target}, which does not exist.")
        shown = text.code(file.relative_to(root).as_posix())
        return shown if words.strip("`/") == file.relative_to(root).as_posix() else f"{words} ({shown})"

    return _LINK.sub(replaced, source)
