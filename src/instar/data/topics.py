"""Questions and answers that ship inside Python: its docstrings and its help topics. No download, no model."""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import pydoc_data.topics
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instar.data.collection import Collection
from instar.errors import DataError

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "site-packages", "dist-packages"}
_PASSAGE = 900
"""Characters after which a passage of a help topic ends with its paragraph."""
_QUERY_WORDS = (4, 40)
_DOCUMENT_WORDS = 12
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SIGNATURE = re.compile(r"^\w[\w.]*\(.*?\)\s*(?:->|=)")


def topics() -> Collection:
    """Real text with real structure, in a fixed order, for trying things out; it differs between releases of Python.

    - The first sentence of a docstring of the standard library asks for the rest of it, which stands under its name.
    - Sentences taken out of a longer docstring, or of a passage of a help topic, ask for what is left (the inverse cloze task of
      Lee et al. 2019): at most every third sentence, so that most of the text stays.

    What a query says is never left in its document. Documents that are equal are one, and so are queries; a query then has
    several relevant documents. Raises DataError where Python came without its own sources.
    """
    documents: dict[str, int] = {}
    names: list[str] = []
    relevant: dict[str, set[int]] = {}
    counts = {}
    for source, found in (("docstrings", _docstrings()), ("passages", _passages())):
        before = len(relevant)
        for name, query, document in found:
            place = documents.setdefault(document, len(documents))
            if place == len(names):
                names.append(name)
            relevant.setdefault(query, set()).add(place)
        counts[source] = len(relevant) - before
    if not counts["docstrings"]:
        raise DataError("This Python has no sources of its standard library, so there is no embedded collection. Give --data.")
    return Collection(
        "topics",
        ids=_distinct(names),
        texts=list(documents),
        query_ids=[f"q{i}" for i in range(len(relevant))],
        queries=list(relevant),
        relevant=[np.array(sorted(places), dtype=np.int64) for places in relevant.values()],
        facts={
            "source": "docstrings of the standard library and pydoc_data.topics",
            "python": platform.python_version(),
            "queries_by_source": counts,
            "sha256": hashlib.sha256("\0".join([*documents, *relevant]).encode(errors="replace")).hexdigest(),
        },
    )


@functools.cache
def _docstrings() -> list[tuple[str, str, str]]:
    """(name, query, name and what is left), of every documented module, class and function."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or _SKIPPED & set(parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):  # a file that belongs to another release
            continue
        for name, text in _documented(tree, ".".join(p for p in parts if p != "__init__")):
            summary, _, rest = _plain(text).partition("\n\n")
            summary = " ".join(summary.split())
            whole = _without(rest, summary)
            taken, left = _cloze(whole)
            if len(left.split()) < 2 * _DOCUMENT_WORDS:
                taken, left = [], whole
            low, high = _QUERY_WORDS
            if len(left.split()) < _DOCUMENT_WORDS:
                continue
            if low <= len(summary.split()) <= high and not _SIGNATURE.match(summary):
                taken = [summary, *taken]
            found += [(name, query, f"{name}\n{left}") for query in taken if query not in left]
    return found


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(child)):
            yield f"{name}.{child.name}", text


def _passages() -> list[tuple[str, str, str]]:
    """(topic, a sentence, what is left of the passage). Topics repeat each other; a paragraph counts where it comes first."""
    seen: set[str] = set()
    found = []
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        part: list[str] = []
        for paragraph in [*re.split(r"\n\s*\n", text), ""]:
            plain = " ".join(paragraph.split())
            if (not paragraph and part) or sum(map(len, part)) >= _PASSAGE:
                taken, left = _cloze(" ".join(part))
                if len(left.split()) >= 2 * _DOCUMENT_WORDS:
                    found += [(topic, query, left) for query in taken if query not in left]
                part = []
            if plain and plain not in seen:
                seen.add(plain)
                part.append(plain)
    return found


def _cloze(text: str) -> tuple[list[str], str]:
    """Sentences that are whole ones, of every three at most one and never the first, and the text without them."""
    sentences = _SENTENCE.split(text)
    taken: list[int] = []
    for place, sentence in enumerate(sentences):
        if place >= (taken[-1] + 3 if taken else 1) and _asks(sentence):
            taken.append(place)
    left = " ".join(s for i, s in enumerate(sentences) if i not in taken)
    return [sentences[i] for i in taken], left


def _asks(sentence: str) -> bool:
    """Whether it is a whole sentence of some length: no table, no grammar, no note on a release."""
    low, high = _QUERY_WORDS
    whole = sentence[:1].isupper() and sentence.endswith(".") and 2 * low <= len(sentence.split()) <= high
    return whole and not re.match(r"(Changed|New|Deprecated) in ", sentence) and not re.search(r"\||::=|>>>", sentence)


def _plain(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text).strip()


def _without(text: str, query: str) -> str:
    """The rest of a docstring in one line, without its first sentence, which some repeat."""
    return " ".join(" ".join(text.split()).replace(query, " ").split())


def _distinct(names: list[str]) -> list[str]:
    """Names with a number where they repeat."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found
