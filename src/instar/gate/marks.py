"""Marks: how right an answer is, by metric."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, InstarError, UnknownNameError
from instar.gate.predictions import Json, Predictions, listed
from instar.gate.values import canonical, pairs_of
from instar.locate import locate

Floats = NDArray[np.float64]
Mark = Callable[[Json, Json], float]
"""`mark(output, label)` -> quality, higher is better; True and False are 1 and 0."""

METRICS = {
    "agreement": "the answer is the label (or one of the labels, where the label is a list)",
    "exact_match": "the same text, spaces at the ends and runs of spaces aside",
    "contains": "the label occurs in the answer, case aside",
    "last_number": "the last number of the answer is the last number of the label (arithmetic)",
    "rouge1": "F of single words in common", "rouge2": "F of pairs of words in common",
    "rougeL": "F of the longest common subsequence of words",
    "recall": "share of the relevant documents among the first k (recall@10; recall@5 …)",
    "map": "average precision of the ranked documents",
    "mrr": "1 / rank of the first relevant document",
    "absolute_error": "minus the mean absolute error", "squared_error": "minus the mean squared error",
    "score": "the column `score`, as a judge or harness gave it",
    "unchanged": "no labels: the answer of the old version counts as right",
}  # fmt: skip

_LARGEST = 1e100
"""Marks beyond this are refused: their squares would not be finite."""


@dataclass(frozen=True)
class Marked:
    """Marks of one version: quality per item, NaN where there is no answer."""

    values: Floats
    metric: str
    binary: bool
    """Whether a mark is right (1) or wrong (0)."""


def mark(version: Predictions, labels: list[Json] | None, metric: str) -> Marked:
    """Mark every answer of a version against `labels` (of the old version, or its answers for `unchanged`). Raises DataError."""
    n = len(version)
    answered = np.fromiter((o is not None for o in version.outputs), dtype=bool, count=n)
    if metric == "score":
        assert version.scores is not None
        values = version.scores.astype(np.float64, copy=True)
        bad = np.flatnonzero(answered & ~(np.abs(values) < _LARGEST))
        if len(bad):
            raise DataError(f"{version.name}: {len(bad)} scores are no finite numbers: {listed([version.ids[i] for i in bad])}.")
        values[~answered] = np.nan
        return Marked(values, metric, _is_binary(values))
    assert labels is not None
    function, binary = _function(metric)
    without = [version.ids[i] for i, label in enumerate(labels) if label is None]
    if without:
        raise DataError(
            f"{len(without)} items have no label: {listed(without)}. Give each one, or judge them in a file of their own."
        )
    # Every distinct pair of answer and label is marked once.
    firsts, which = pairs_of(version.outputs, labels)
    marks = np.full(len(firsts), np.nan)
    for place, i in enumerate(firsts):
        output, label = version.outputs[i], labels[i]
        if output is None:
            continue
        try:
            marks[place] = float(function(output, label))
        except InstarError as error:
            raise DataError(f"{version.name}, item '{version.ids[i][:60]}': {error}") from error
        except Exception as error:  # a user's function may raise anything
            raise DataError(
                f"{version.name}, item '{version.ids[i][:60]}': the metric {metric} cannot mark the answer {str(output)[:80]!r} "
                f"against {str(label)[:80]!r}: {type(error).__name__}: {error}"
            ) from error
    values = marks[which]
    bad = np.flatnonzero(answered & ~(np.abs(values) < _LARGEST))
    if len(bad):
        raise DataError(f"{version.name}: the metric {metric} is not finite for {listed([version.ids[i] for i in bad])}.")
    return Marked(values, metric, binary or (not metric.endswith("_error") and _is_binary(values)))


def _is_binary(values: Floats) -> bool:
    answered = values[~np.isnan(values)]
    return bool(np.isin(answered, (0.0, 1.0)).all())


def _function(metric: str) -> tuple[Mark, bool]:
    """The marking function, and whether its marks are always right or wrong."""
    name, _, argument = metric.partition("@")
    if name == "agreement":
        return _agreement, True
    if name == "unchanged":
        return lambda output, label: canonical(output) == canonical(label), True
    if name == "exact_match":
        return lambda output, label: any(_plain(output) == _plain(one) for one in _alternatives(label)), True
    if name == "contains":
        return lambda output, label: any(_plain(x).casefold() in _plain(output).casefold() for x in _alternatives(label)), True
    if name == "last_number":
        return lambda output, label: _last_number(output) is not None and _last_number(output) == _last_number(label), True
    if name in ("rouge1", "rouge2"):
        size = int(name[-1])
        return lambda output, label: max(rouge_n(str(output), str(one), size) for one in _alternatives(label)), False
    if name == "rougeL":
        return lambda output, label: max(rouge_l(str(output), str(one)) for one in _alternatives(label)), False
    if name == "recall":
        k = _cutoff(argument, 10)
        return lambda output, label: recall(_ranked(output), _relevant(label), k), False
    if name == "map":
        return lambda output, label: average_precision(_ranked(output), _relevant(label)), False
    if name == "mrr":
        return lambda output, label: reciprocal_rank(_ranked(output), _relevant(label)), False
    if name in ("absolute_error", "squared_error"):
        power = 1 if name == "absolute_error" else 2
        return lambda output, label: -error(output, label, power), False
    return locate(metric), False


def _agreement(output: Json, label: Json) -> bool:
    said = canonical(output)
    return said == canonical(label) or (isinstance(label, list) and any(said == canonical(one) for one in label))


def _alternatives(label: Json) -> list[Json]:
    if isinstance(label, list) and not label:
        raise DataError("A label is an empty list: no answer could be right.")
    return label if isinstance(label, list) else [label]


def _plain(value: Json) -> str:
    return " ".join(_text(value).split())


def _text(value: Json) -> str:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else canonical(value)


def _last_number(value: Json) -> str | None:
    """The last number of a text: "… #### 1,250." is 1250, "1,2,3" ends in 3, "6.02e23" is one, the 5 of "3-5" not negative."""
    text = _text(value).replace("\u2212", "-")  # the minus sign of typesetters
    whole = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
    found = re.findall(rf"(?:(?<![\w.)])(-))?((?:(?:{whole})(?:\.\d+)?|(?<!\w)\.\d+)(?:[eE][+-]?\d{{1,3}}(?!\w))?)", text)
    if not found:
        return None
    sign, digits = found[-1]
    whole, _, rest = digits.replace(",", "").partition(".")
    return canonical(sign + (whole.lstrip("0") or "0") + (f".{rest}" if rest else ""))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def rouge_n(output: str, label: str, n: int) -> float:
    """ROUGE-n F of lower-case words without stemming (Lin 2004): the overlap of word n-grams, counted with repetition."""
    a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (_words(output), _words(label)))
    common = sum((a & b).values())
    return 0.0 if common == 0 else 2 * common / (sum(a.values()) + sum(b.values()))


def rouge_l(output: str, label: str) -> float:
    """ROUGE-L F (Lin 2004): the longest common subsequence of words; O(words² / 64).

    A row of the table of lengths is one whole number, in which a bit is 0 where the length grows (Hyyrö 2004).
    """
    a, b = _words(output), _words(label)
    places: dict[str, int] = {}
    for j, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << j
    every = row = (1 << len(b)) - 1
    for word in a:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & every
    common = len(b) - row.bit_count()
    return 0.0 if common == 0 else 2 * common / (len(a) + len(b))


def recall(ranked: Sequence[str], relevant: set[str], k: int) -> float:
    """Share of the relevant documents among the first k."""
    return len(relevant & set(ranked[:k])) / len(relevant)


def average_precision(ranked: Sequence[str], relevant: set[str]) -> float:
    """Mean over the relevant documents of the precision at their rank; 0 for those that are not found."""
    found, total = 0, 0.0
    for rank, document in enumerate(dict.fromkeys(ranked), 1):
        if document in relevant:
            found += 1
            total += found / rank
    return total / len(relevant)


def reciprocal_rank(ranked: Sequence[str], relevant: set[str]) -> float:
    """1 / rank of the first relevant document, 0 when none is found."""
    return next((1 / rank for rank, document in enumerate(ranked, 1) if document in relevant), 0.0)


def error(output: Json, label: Json, power: int) -> float:
    """Mean of |output − label|^power over the numbers of an item (one, or the steps of a forecast)."""
    a, b = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (output, label))
    if a.shape != b.shape:
        raise DataError(f"A forecast of shape {a.shape} cannot be held against {b.shape} values.")
    return float(np.mean(np.abs(a - b) ** power))


def _ranked(output: Json) -> list[str]:
    if not isinstance(output, list):
        raise DataError(f"Retrieval expects a list of document ids as output, best first; received {str(output)[:80]!r}.")
    return [canonical(x) for x in output]


def _relevant(label: Json) -> set[str]:
    """Relevant ids: one id, a list of them, or an object id -> grade (above 0 is relevant)."""
    if isinstance(label, dict):
        found = {canonical(key) for key, grade in label.items() if grade > 0}
    else:
        found = {canonical(x) for x in _alternatives(label)}
    if not found:
        raise DataError("A query has no relevant document, so its recall is not defined; leave it out of the file.")
    return found


def _cutoff(argument: str, default: int) -> int:
    if argument and not (argument.isdigit() and int(argument) > 0):
        raise UnknownNameError(f"recall@k expects a number of documents such as recall@10; received '@{argument}'.")
    return int(argument) if argument else default
