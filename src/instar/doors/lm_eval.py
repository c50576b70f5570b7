"""Reads what EleutherAI's lm-evaluation-harness wrote with `--log_samples` (since 0.4.3): predictions without a run.

The harness writes `<output>/<model>/samples_<task>_<time>.jsonl`, one line for each item and filter, and one
`results_<time>.json` for a run. Its own metric becomes the score; nothing is judged again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar.doors.lm_eval_samples import Sample, best, is_likelihood, output_of
from instar.errors import DataError, UnknownNameError
from instar.gate.predictions import Json, Predictions, unique

_FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
_LONGEST_LINE = 64 * 2**20
_SHORT, _FEW = 60, 20
"""A field of the documents becomes a column when its texts are so short, and its values so few."""


@dataclass(frozen=True)
class _File:
    path: Path
    task: str
    time: str
    older: int
    """Files of earlier runs of this task, which are not read."""


def matches(folder: str | Path) -> bool:
    """Whether a folder is output of the harness with samples, of one model or of several."""
    return bool(_found(Path(folder)))


def read(folder: str | Path, metric: str = "", name: str = "", *, filter: str = "") -> Predictions:
    """The predictions of one model, all tasks together, newest run of each task.

    ids are `task/doc_id`, followed by `/filter` where a task has several. outputs: the text of the chosen answer (multiple
    choice), the filtered text (generation), whether the target would have been said (one continuation), the log-likelihood
    (perplexity). labels: the target, as the text of the answer in multiple choice. scores: the metric, higher is better: one
    that the harness calls lower-is-better is negated; of a perplexity it is the log-likelihood a word or byte.

    Args:
        folder: `<output>/<model>`, or `<output>` where it holds one model.
        metric: used for every task that has it; the others, and all without it, take the first that they have of acc,
            exact_match, acc_norm, em, pass@1, f1, or else their first that is a number. `facts` says which.
        name: how to call this version; the folder's name otherwise.
        filter: of a task that has it, nothing else is read: two filters are two readings of one answer, not two items.

    Raises DataError when there is nothing to read, several models, or a damaged line (with its file and number), and
    UnknownNameError for a metric or a filter that no task has.
    """
    folder = Path(folder)
    files = _newest(folder)
    results = {file.time: _results(file.path.parent, file.time) for file in files}
    samples: list[Sample] = []
    scored: list[float] = []
    used: dict[str, str] = {}
    negated: list[str] = []
    known: set[str] = set()
    for file in files:
        rows = list(_samples(file))
        rows = [row for row in rows if row.filter == filter] or rows
        several = len({row.filter for row in rows}) > 1
        names = [f"{file.task}/{row.doc_id}" + (f"/{row.filter}" if several else "") for row in rows]
        unique(names, str(file.path))
        used[file.task] = chosen = best(rows, metric)
        sign = -1.0 if _lower_is_better(results[file.time], file.task, chosen) else 1.0
        negated += [file.task] if sign < 0 else []
        known |= {key for row in rows for key in row.metrics}
        for row, id_ in zip(rows, names, strict=True):
            row.id = id_
            scored.append(sign * row.score(chosen))
        samples += rows
    if metric and metric not in used.values():
        raise UnknownNameError.among(f"metric in {folder}", metric, known)
    if filter and filter not in (filters := {sample.filter for sample in samples}):
        raise UnknownNameError.among(f"filter in {folder}", filter, filters)
    return _predictions(
        name or folder.name, samples, scored, used, _facts(folder, files, results, samples, used, negated), results
    )


def _predictions(
    name: str, samples: list[Sample], scored: list[float], used: dict[str, str], facts: dict[str, Any], results: dict[str, Any]
) -> Predictions:
    outputs: list[Json] = []
    errors: dict[str, str] = {}
    for sample, score in zip(samples, scored, strict=True):
        output, reason = output_of(sample, used[sample.task])
        if reason is None and not math.isfinite(score):
            reason = f"the harness gave no finite {used[sample.task]}"
        outputs.append(output if reason is None else None)
        errors |= {sample.id: reason} if reason is not None else {}
    costs = {}
    if len(results) == 1:
        seconds = _number(next(iter(results.values())).get("total_evaluation_time_seconds"))
        costs = {"wall_seconds": seconds} if math.isfinite(seconds) else {}
    columns: dict[str, list[Json]] = {what: [getattr(s, what) for s in samples] for what in ("task", "filter", "doc_hash")}
    return Predictions(
        name=name,
        ids=[sample.id for sample in samples],
        outputs=outputs,
        labels=[sample.label for sample in samples],
        scores=np.array([np.nan if output is None else score for output, score in zip(outputs, scored, strict=True)]),
        inputs=[sample.prompt for sample in samples],
        errors=errors,
        columns=columns | _fields(samples),
        costs=costs,
        facts=facts,
    )


def _found(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    paths = [*folder.glob("samples_*.jsonl"), *folder.glob("*/samples_*.jsonl")] if folder.is_dir() else []
    return [(path, found) for path in sorted(paths) if (found := _FILE.fullmatch(path.name)) and path.is_file()]


def _newest(folder: Path) -> list[_File]:
    found = _found(folder)
    if not found:
        raise DataError(f"{folder} holds no samples_<task>_<time>.jsonl; run lm_eval with --log_samples and --output_path.")
    models = sorted({path.parent for path, _ in found})
    if len(models) > 1:
        raise DataError(f"{folder} holds several models: {', '.join(str(m) for m in models[:10])}. Name the folder of one.")
    by_task: dict[str, list[tuple[str, Path]]] = {}
    for path, match in found:
        by_task.setdefault(match["task"], []).append((match["time"], path))
    return [_File(max(runs)[1], task, max(runs)[0], len(runs) - 1) for task, runs in sorted(by_task.items())]


def _results(folder: Path, time: str) -> dict[str, Any]:
    """What a run wrote about itself, empty where that is missing."""
    path = next((p for p in sorted(folder.glob(f"*_{time}.json")) if p.is_file()), None)
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}); delete it or repeat the run.") from error
    return value if isinstance(value, dict) else {}


def _lower_is_better(results: dict[str, Any], task: str, metric: str) -> bool:
    value: Any = results
    for key in ("higher_is_better", task, metric):
        value = value.get(key) if isinstance(value, dict) else None
    return value is False and not is_likelihood(metric)


def _samples(file: _File) -> Iterator[Sample]:
    """Every line of a file. Raises DataError with the number of a line that is damaged."""
    count = 0
    try:
        with file.path.open("rb") as lines:
            for number in range(1, 2**63):
                line = lines.readline(_LONGEST_LINE + 1)
                if not line:
                    break
                if not line.strip():
                    continue
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{file.path}, line {number}: longer than {_LONGEST_LINE // 2**20} MiB.")
                try:
                    yield Sample.parse(json.loads(line), file.task)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{file.path}, line {number}: {_told(error)}. Repeat the run, or delete the line.") from error
                count += 1
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror}.") from error
    if count == 0:
        raise DataError(f"{file.path} holds no sample.")


def _told(error: Exception) -> str:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
        return f"no JSON ({type(error).__name__})"
    return str(error)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _fields(samples: list[Sample]) -> dict[str, list[Json]]:
    """Fields of the documents that part the items: short texts, truth values and whole numbers with few values."""
    columns: dict[str, list[Json]] = {}
    for field in dict.fromkeys(key for sample in samples for key in sample.doc):
        values = [sample.doc.get(field) for sample in samples]
        present = [value for value in values if value is not None]
        simple = all(isinstance(v, (bool, int)) or (isinstance(v, str) and len(v) <= _SHORT) for v in present)
        if simple and len(field) <= _SHORT and 2 <= len(set(map(repr, present))) <= min(_FEW, len(present) // 2):
            columns[f"doc.{field}"] = values
    return columns


def _facts(
    folder: Path, files: list[_File], results: dict[str, Any], samples: list[Sample], used: dict[str, str], negated: list[str]
) -> dict[str, Any]:
    newest = results[max(results)]
    prompts = hashlib.sha256("".join(sample.prompt_hash for sample in samples).encode()).hexdigest()
    facts: dict[str, Any] = {"source": str(folder), "kind": "lm_eval", "metric": used, "prompts_sha256": prompts}
    facts["files"] = {file.task: file.path.name for file in files}
    facts |= {key: newest[key] for key in ("model_name", "lm_eval_version") if isinstance(newest.get(key), str)}
    if older := sum(file.older for file in files):
        facts["older_files_not_read"] = older
    return facts | ({"negated": negated} if negated else {})
