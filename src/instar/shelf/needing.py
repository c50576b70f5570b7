"""Search by need, in plain words: words are reduced to stems, and entries ranked by the stems that they share with the question.

Okapi BM25 over weighted fields [Robertson, Zaragoza, Taylor 2004]: a stem t that occurs f_t times in an entry, weighted by field
and divided by the entry's length over the mean, adds idf_t f_t (k + 1) / (f_t + k). Words that stand for each other add part of
that. What an entry adds for a stem is rounded to an integer when the table is made, and from there on there are only integers:
the page holds the same table and finds the same in the same order (`report/templates/find.js`).
"""

from __future__ import annotations

import math
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from instar.shelf import listed
from instar.shelf.entries import Entry

_WORDS = Path(__file__).with_name("words.toml")
_K, _B = 1.2, 0.3
_FIELDS = {"name": 2.5, "line": 2.0, "needs": 2.0, "words": 1.2, "terms": 1.0, "methods": 0.7}
_OWN, _ALIKE = 5, 3
"""What a word of the question itself and one that stands for it count."""
_SHARE = 36
"""Hundredths of a question, weighted by how rare its words are, that an entry must speak of to be a sure answer."""
_LONGEST = 32


class Table(TypedDict):
    """All that a search needs: plain JSON."""

    stop: list[str]
    endings: list[list[str]]
    whole: list[str]
    alike: dict[str, list[str]]
    rare: dict[str, int]
    """How rare each stem is, in hundredths of a nat."""
    unknown: int
    """What a word that no entry has counts as."""
    adds: dict[str, list[list[int]]]
    """Stem -> [entry, what it adds] of every entry that has it."""
    own: int
    like: int
    share: int
    longest: int


@dataclass(frozen=True)
class Found:
    """One answer: the entry's place in the list, its score, and whether it speaks of enough of the question to be sure."""

    entry: int
    score: int
    sure: bool


def table(entries: Sequence[Entry]) -> Table:
    """The table of a list of entries."""
    rules = tomllib.loads(_WORDS.read_text("utf-8"))
    made: Table = {
        "stop": rules["stop"],
        "endings": rules["endings"],
        "whole": rules["whole"],
        "alike": {},
        "rare": {},
        "unknown": 0,
        "adds": {},
        "own": _OWN,
        "like": _ALIKE,
        "share": _SHARE,
        "longest": _LONGEST,
    }
    groups = [list(dict.fromkeys(stem(word, made) for word in group)) for group in rules["alike"]]
    for group in groups:
        for word in group:
            others = made["alike"].setdefault(word, [])
            others += [other for other in group if other != word and other not in others]
    _fill(made, [_counts(entry, made) for entry in entries])
    return made


def _counts(entry: Entry, made: Table) -> Counter[str]:
    """Weighted occurrences of each stem."""
    clock = next((c.updates for c in listed.clocks() if c.id == entry.clock), "")
    titles = [domain.title for domain in listed.domains() if domain.id in entry.domains]
    fields: dict[str, Iterable[str]] = {
        "name": [entry.id, entry.title, *(c.slug for c in entry.methods if entry.kind == "system")],
        "line": [entry.line],
        "needs": entry.needs,
        "words": [entry.words],
        "terms": [*entry.tasks, *titles, entry.kind, entry.clock, clock],
        "methods": [f"{c.title} {c.idea}" for c in entry.methods if entry.listed and entry.kind == "system"],
    }
    found: Counter[str] = Counter()
    for name, texts in fields.items():
        for text in texts:
            for found_stem in (stem(word, made) for word in split(text) if word not in made["stop"]):
                found[found_stem] += _FIELDS[name]  # type: ignore[assignment]  # weighted counts are no integers
    return found


def _fill(made: Table, counts: Sequence[Counter[str]]) -> None:
    lengths = [sum(found.values()) for found in counts]
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    having = Counter(word for found in counts for word in found)
    rare = {word: math.log(1 + (len(counts) - n + 0.5) / (n + 0.5)) for word, n in having.items()}
    made["rare"] = {word: round(100 * rare[word]) for word in sorted(rare)}
    made["unknown"] = max(made["rare"].values(), default=100)
    made["adds"] = {word: [] for word in made["rare"]}
    for place, (found, length) in enumerate(zip(counts, lengths, strict=True)):
        for word, count in found.items():
            often = count / (1 - _B + _B * length / mean)
            made["adds"][word].append([place, round(100 * rare[word] * often * (_K + 1) / (often + _K))])


def find(text: str, made: Table, most: int = 8) -> list[Found]:
    """The entries nearest to a question, the best first; those that score alike in the order of the list.

    Where none is sure, nothing here answers outright: most of the question is about something else.
    """
    asked = stems(text, made)
    total = sum(made["own"] * made["rare"].get(word, made["unknown"]) for word in asked)
    score: Counter[int] = Counter()
    spoken: Counter[int] = Counter()
    for word in asked:
        adds: dict[int, int] = {}
        weight: dict[int, int] = {}
        for other in (word, *made["alike"].get(word, ())):
            times = made["own"] if other == word else made["like"]
            for place, add in made["adds"].get(other, ()):
                adds[place] = max(adds.get(place, 0), times * add)
                weight[place] = max(weight.get(place, 0), times)
        for place, add in adds.items():
            score[place] += add
            spoken[place] += weight[place] * made["rare"].get(word, made["unknown"])
    best = sorted(score, key=lambda place: (-score[place], place))[:most]
    return [Found(place, score[place], 100 * spoken[place] >= made["share"] * total) for place in best]


def stems(text: str, made: Table) -> list[str]:
    """The stems of a question, each once, in order; the first few where there are very many."""
    return list(dict.fromkeys(stem(word, made) for word in split(text) if word not in made["stop"]))[: made["longest"]]


def split(text: str) -> list[str]:
    """Words: runs of Latin letters and digits, in lower case, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.category(c).startswith("M"))
    return re.findall(r"[a-z0-9]+", plain.lower())


def stem(word: str, made: Table) -> str:
    """A word without its ending, so that its forms meet: `quantised`, `quantizing` and `quantisation` are one."""
    if word in made["whole"]:
        return word
    for ending, instead, least in made["endings"]:
        if word.endswith(ending) and len(word) - len(ending) >= int(least):
            word = word[: len(word) - len(ending)] + instead
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou0123456789":
        word = word[:-1]
    return word
