"""Which task it is, and what counts as right in it, where the user leaves that open."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from instar.errors import DataError, UnknownNameError
from instar.gate.marks import METRICS
from instar.gate.predictions import Cases, Json, Predictions
from instar.gate.values import coded, number

_DEFAULT = {
    "classification": "agreement",
    "multiple_choice": "agreement",
    "generation": "exact_match",
    "retrieval": "recall@10",
    "regression": "absolute_error",
}


def choose(task: str, metric: str, versions: Sequence[Predictions]) -> tuple[str, str, str]:
    """The task and metric to be used, and why, where the user left them open.

    Rules for `auto`, in this order: numbers with fractions (alone or in lists) are regression; lists are retrieval; texts with
    spaces that seldom repeat are generation; the rest is classification. Raises UnknownNameError, DataError.
    """
    first = versions[0]
    scored = all(version.scores is not None for version in versions)
    why = ""
    if task not in ("", "auto") and task not in _DEFAULT:
        raise UnknownNameError.among("task", task, ["auto", *_DEFAULT])
    if task in ("", "auto"):
        task, why = _guess(first)
    if not metric:
        if first.labels is None:
            metric = "score" if scored else "unchanged"
            reason = "there are no labels" + ("" if metric == "unchanged" else ", but scores")
            why = f"{why}; {reason}" if why else reason
        elif scored and task == "generation":
            metric = "score"
        else:
            metric = _DEFAULT[task]
    name = metric.partition("@")[0]
    if name not in METRICS and ":" not in metric:
        raise UnknownNameError.among("metric", metric, [*METRICS, "file.py:function"])
    if metric == "score" and not scored:
        lacking = ", ".join(version.name for version in versions if version.scores is None)
        raise DataError(f"The metric 'score' needs a column 'score' in every file; {lacking} has none.")
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
    if _fractions(labels):
        return "regression"
    distinct = len(coded(labels)[0])
    return "classification" if cases.examples or 0 < distinct <= len(labels) / 2 else "generation"


def _guess(version: Predictions) -> tuple[str, str]:
    labels = version.labels or itertools.repeat(None)
    sample = list(itertools.islice(((o, label) for o, label in zip(version.outputs, labels) if o is not None), 2000))  # noqa: B905
    if not sample:
        raise DataError(f"{version.name} has no answer at all: every output is missing.")
    outputs = [o for o, _ in sample]
    lists = all(isinstance(o, list) for o in outputs)
    if _fractions([x for pair in sample for value in pair for x in (value if isinstance(value, list) else [value])]):
        return "regression", "outputs or labels are numbers with fractions"
    if lists:
        return "retrieval", "the outputs are lists"
    texts = [str(o) for o in outputs]
    if len(set(texts)) > max(20, len(texts) / 2) and sum(" " in t.strip() for t in texts) > len(texts) / 2:
        return "generation", "the outputs are texts that seldom repeat"
    return "classification", "the outputs repeat"


def _fractions(values: Sequence[Json]) -> bool:
    """Whether there are numbers with fractions: as such, or, as in CSV, spelled by texts that are all numbers."""
    found = [number(x) for x in values if x is not None]
    broken = any(x is not None and math.isfinite(x) and not x.is_integer() for x in found)
    return broken and (None not in found or any(isinstance(x, float) and not x.is_integer() for x in values))
