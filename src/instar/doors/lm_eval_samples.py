"""One sample of the lm-evaluation-harness: what was asked, what was chosen, and how good the harness found it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instar.doors.wording import utf8
from instar.gate.predictions import Json

_PREFERRED = ("acc", "exact_match", "acc_norm", "em", "pass@1", "f1")
_OWN = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_OWN |= {"doc_hash", "prompt_hash", "target_hash"}
_RATES = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Their values of one item are [log-likelihood, number of words or bytes]."""
_LONGEST_PROMPT = 2000


@dataclass
class Sample:
    """One line of a samples file."""

    task: str
    doc_id: int | str
    filter: str
    doc: Mapping[str, Any]
    target: Json
    requests: list[tuple[str, Any]]
    """What was given to the model: (context, continuation), or (prompt, settings of the generation), or (text, None)."""
    answers: Any
    """`filtered_resps`; None where it is missing."""
    metrics: dict[str, float]
    """Those that are one number for an item; a rate (`word_perplexity`, …) as log-likelihood a word or byte."""
    doc_hash: str
    prompt_hash: str
    id: str = field(default="")

    @classmethod
    def parse(cls, line: Any, task: str) -> Sample:
        """From the JSON of a line. Raises ValueError for what is no sample."""
        if not isinstance(line, dict):
            raise ValueError("no JSON object")
        doc_id = line.get("doc_id")
        if isinstance(doc_id, bool) or not isinstance(doc_id, (int, str)):
            raise ValueError("it has no doc_id")
        names = line.get("metrics")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):  # the first 0.4 releases name none
            names = [key for key in line if key not in _OWN]
        values = {name: _value(name, line.get(name)) for name in names}
        doc = line.get("doc")
        hashes = [utf8(line[name]) if isinstance(line.get(name), str) else "" for name in ("doc_hash", "prompt_hash")]
        return cls(
            task,
            utf8(doc_id) if isinstance(doc_id, str) else doc_id,
            utf8(str(line.get("filter", "none"))),
            _clean(doc) if isinstance(doc, dict) else {},
            _clean(line.get("target")),
            _requests(line.get("arguments")),
            _clean(line.get("filtered_resps")),
            {name: value for name, value in values.items() if value is not None},
            *hashes,
        )

    @property
    def choices(self) -> list[str]:
        """The answers to choose from; empty for what is no multiple choice."""
        parts = [part for context, part in self.requests if context] or [part for _, part in self.requests]
        return [part.strip() for part in parts] if len(parts) > 1 and all(isinstance(part, str) for part in parts) else []

    @property
    def label(self) -> Json:
        """The target; in multiple choice, where the harness names it by its place, the text of that answer."""
        choices = self.choices
        if not choices:
            return True if len(self.requests) == 1 and isinstance(self.requests[0][1], str) else self.target
        place = str(self.target)
        if place.isdecimal() and len(place) < 9 and int(place) < len(choices):
            return _text_or_place(choices, int(place))
        return self.target

    @property
    def prompt(self) -> str:
        """The first context; of a long one the end, where the question stands after the examples."""
        text = self.requests[0][0] if self.requests else ""
        return text if len(text) <= _LONGEST_PROMPT else "…" + text[1 - _LONGEST_PROMPT :]

    def score(self, metric: str) -> float:
        """NaN where this sample has no such metric."""
        return self.metrics.get(metric, math.nan)


def is_likelihood(metric: str) -> bool:
    """Whether the values of single items are log-likelihoods, although the harness calls the metric lower-is-better."""
    return metric in _RATES or metric == "perplexity"


def best(samples: Sequence[Sample], wanted: str) -> str:
    """The metric of a task: the wanted one if any sample has it, else by preference; empty when there is no number at all."""
    known = dict.fromkeys(name for sample in samples for name in sample.metrics)
    return next((name for name in (wanted, *_PREFERRED, *known) if name in known), "")


def output_of(sample: Sample, metric: str) -> tuple[Json, str | None]:
    """What was said, or None and the reason why that is not known.

    In multiple choice it is the answer of the highest log-likelihood, divided by the length where the metric does so.
    """
    answers = sample.answers
    if not isinstance(answers, list) or not answers:
        return None, "the sample has no filtered_resps"
    choices = sample.choices
    if choices:
        likely = [_likelihood(answer) for answer in answers[: len(choices)]]
        if metric in ("acc_norm", "acc_bytes"):
            sizes = [len(c) if metric == "acc_norm" else len(c.encode()) for c in choices]
            likely = [value / max(size, 1) for value, size in zip(likely, sizes, strict=False)]
        if len(likely) != len(choices) or any(math.isnan(value) for value in likely):
            return None, "the log-likelihoods are damaged"
        return _text_or_place(choices, max(range(len(likely)), key=likely.__getitem__)), None
    first = answers[0] if len(answers) == 1 else answers
    kind = sample.requests[0][1] if len(sample.requests) == 1 else {}
    if isinstance(kind, str) and isinstance(first, list) and len(first) == 2:
        return str(first[1]) == "True", None
    if kind is None:
        value = _likelihood(first)
        return (value, None) if math.isfinite(value) else (None, "the log-likelihood is not finite")
    return (first[0] if isinstance(first, list) and len(first) == 1 else first), None


def _text_or_place(choices: list[str], place: int) -> Json:
    """The text of an answer; its place where the texts do not tell answers apart (Winogrande varies the context)."""
    return choices[place] if len(set(choices)) == len(choices) else place


def _likelihood(answer: Any) -> float:
    """From `["-3.2", "False"]`, or `-3.2`; the harness writes numbers as text. NaN where there is none."""
    try:
        return float(answer[0] if isinstance(answer, list) else answer)
    except (TypeError, ValueError, IndexError, OverflowError):
        return math.nan


def _value(name: str, value: Any) -> float | None:
    """A metric of one item as a number; None for what is none (some metrics need the whole set)."""
    if name in _RATES and isinstance(value, list) and len(value) == 2:
        likelihood, count = _likelihood(value[0]), _likelihood(value[1])
        return likelihood / count if count > 0 else math.nan
    try:
        return float(value) if isinstance(value, (bool, int, float)) else None
    except OverflowError:
        return math.nan


def _requests(arguments: Any) -> list[tuple[str, Any]]:
    """From `{"gen_args_0": {"arg_0": …, "arg_1": …}, …}`, or from the plain lists of the first releases."""
    rows = list(arguments.values()) if isinstance(arguments, dict) else arguments if isinstance(arguments, list) else []
    parts = [list(row.values()) if isinstance(row, dict) else row if isinstance(row, list) else [row] for row in rows]
    return [(_text(row[0]), _clean(row[1]) if len(row) > 1 else None) for row in parts if row]


def _text(value: Any) -> str:
    return utf8(value if isinstance(value, str) else json.dumps(value))


def _clean(value: Any) -> Any:
    """Text that can be written to any file, at every depth; NaN and the infinities, which are no JSON, as text."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, dict):
        return {utf8(str(key)): _clean(part) for key, part in value.items()}
    return value
