"""What counts as right: a mark for every answer, by task and metric."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, InstarError, UnknownNameError
from instar.gate.predictions import Cases, Json, Predictions, listed
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

_DEFAULT = {
    "classification": "agreement",
    "multiple_choice": "agreement",
    "generation": "exact_match",
    "retrieval": "recall@10",
    "regression": "absolute_error",
}


@dataclass(frozen=True)
class Marked:
    """Marks of one version: quality per item, NaN where there is no answer."""

    values: Floats
    metric: str
    binary: bool
    """Whether a mark is right (1) or wrong (0)."""


def choose(task: str, metric: str, versions: Sequence[Predictions]) -> tuple[str, str, str]:
    """The task and metric to be used, and why, where the user left them open.

    Rules for `auto`, in this order: numbers with fractions (alone or in lists) are regression; lists are retrieval; texts with
    spaces that seldom repeat are generation; the rest is classification. Raises UnknownNameError, DataError.
    """
    first = versions[0]
    why = ""
    if task not in ("", "auto") and task not in _DEFAULT:
        raise UnknownNameError.among("task", task, ["auto", *_DEFAULT])
    if task in ("", "auto"):
        task, why = _guess(first)
    if not metric:
        if first.labels is None:
            metric = "unchanged" if any(v.scores is None for v in versions) else "score"
            reason = "there are no labels" + ("" if metric == "unchanged" else ", but scores")
            why = f"{why}; {reason}" if why else reason
        elif first.scores is not None and task not in ("classification", "multiple_choice", "retrieval", "regression"):
            metric = "score"
        else:
            metric = _DEFAULT[task]
    name = metric.partition("@")[0]
    if name not in METRICS and ":" not in metric:
        raise UnknownNameError.among("metric", metric, [*METRICS, "file.py:function"])
    if metric == "score" and any(v.scores is None for v in versions):
        raise DataError("The metric 'score' needs a column 'score' in every file; " + _lacking(versions, "scores"))
    if metric not in ("score", "unchanged") and first.labels is None:
        raise DataError(
            f"The metric '{metric}' needs a column 'label'; {first.name} has none. Without labels use --metric unchanged."
        )
    return task, metric, why


def of_cases(cases: Cases) -> str:
    """The task of an evaluation file, where the user does not say.

    Choices make it multiple choice, documents retrieval, numbers with fractions as labels regression; labels that repeat, or
    labelled examples, classification; the rest is generation.
    """
    if cases.choices is not None:
        return "multiple_choice"
    if cases.documents:
        return "retrieval"
    labels = cases.labels or []
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        return "regression"
    distinct = len(coded(labels)[0])
    return "classification" if cases.examples or 0 < distinct <= len(labels) / 2 else "generation"


def mark(version: Predictions, labels: list[Json] | None, metric: str) -> Marked:
    """Mark every answer of a version against `labels` (of the old version, or its answers for `unchanged`). Raises DataError."""
    n = len(version)
    answered = np.fromiter((o is not None for o in version.outputs), dtype=bool, count=n)
    if metric == "score":
        assert version.scores is not None
        values = version.scores.astype(np.float64, copy=True)
        bad = np.flatnonzero(answered & ~np.isfinite(values))
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
    bad = np.flatnonzero(answered & ~np.isfinite(values))
    if len(bad):
        raise DataError(f"{version.name}: the metric {metric} is not finite for {listed([version.ids[i] for i in bad])}.")
    return Marked(values, metric, binary or _is_binary(values))


def coded(values: Sequence[Json]) -> tuple[list[Json], NDArray[np.int64]]:
    """The distinct values in order of appearance, and the place of each item's value among them."""
    known: dict[Any, int] = {}
    distinct: list[Json] = []
    codes = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        key = value if type(value) is str else (type(value), canonical(value))
        code = known.get(key)
        if code is None:
            code = known[key] = len(distinct)
            distinct.append(value)
        codes[i] = code
    return distinct, codes


def pairs_of(first: Sequence[Json], second: Sequence[Json]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each distinct pair of values its first place, and for each item the place of its pair among them."""
    _, a = coded(first)
    distinct, b = coded(second)
    _, firsts, which = np.unique(a * len(distinct) + b, return_index=True, return_inverse=True)
    return firsts.astype(np.int64), which.astype(np.int64)


def canonical(value: Json) -> str:
    """The same text for what means the same in JSON and in CSV: 1, 1.0 and "1"; true and "true"; spaces at the ends aside."""
    if isinstance(value, str):
        text = value.strip()
        try:  # "1.0" of a CSV is the number 1 of a JSON file
            return canonical(float(text)) if text[:1] in "+-.0123456789" and text else text
        except ValueError:
            return text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or (math.isfinite(value) and value.is_integer() and abs(value) < 2**53)
        return str(int(value)) if whole else f"{value:.12g}"
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _guess(version: Predictions) -> tuple[str, str]:
    sample = [(o, None if version.labels is None else version.labels[i]) for i, o in enumerate(version.outputs) if o is not None]
    sample = sample[:2000]
    if not sample:
        raise DataError(f"{version.name} has no answer at all: every output is missing.")
    outputs = [o for o, _ in sample]
    lists = all(isinstance(o, list) for o in outputs)
    numbers = [x for pair in sample for value in pair for x in (value if isinstance(value, list) else [value])]
    if any(isinstance(x, float) and not x.is_integer() for x in numbers):
        return "regression", "outputs or labels are numbers with fractions"
    if lists:
        return "retrieval", "the outputs are lists"
    texts = [str(o) for o in outputs]
    if len(set(texts)) > max(20, len(texts) / 2) and sum(" " in t.strip() for t in texts) > len(texts) / 2:
        return "generation", "the outputs are texts that seldom repeat"
    return "classification", "the outputs repeat"


def _lacking(versions: Sequence[Predictions], column: str) -> str:
    return ", ".join(v.name for v in versions if getattr(v, column) is None) + " has none."


def _is_binary(values: Floats) -> bool:
    answered = values[~np.isnan(values)]
    return bool(np.isin(answered, (0.0, 1.0)).all())


def _function(metric: str) -> tuple[Mark, bool]:
    """The marking function, and whether it depends on canonical texts alone and is right or wrong."""
    name, _, argument = metric.partition("@")
    if name in ("agreement", "unchanged"):
        return _agreement, True
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
    return " ".join((value if isinstance(value, str) else canonical(value)).split())


def _last_number(value: Json) -> float | None:
    """The last number of a text: "… #### 1,250." is 1250."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", value if isinstance(value, str) else canonical(value))
    return float(found[-1].replace(",", "")) if found else None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def rouge_n(output: str, label: str, n: int) -> float:
    """ROUGE-n F of lower-case words without stemming (Lin 2004): the overlap of word n-grams, counted with repetition."""
    a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (_words(output), _words(label)))
    common = sum((a & b).values())
    return 0.0 if common == 0 else 2 * common / (sum(a.values()) + sum(b.values()))


def rouge_l(output: str, label: str) -> float:
    """ROUGE-L F (Lin 2004): the longest common subsequence of words; O(words²)."""
    a, b = _words(output), _words(label)
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 0.0 if row[-1] == 0 else 2 * row[-1] / (len(a) + len(b))


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
