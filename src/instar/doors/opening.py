"""From what a user names to predictions: files and folders are read, models, endpoints and functions are run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar.doors.version import Progress, Version
from instar.doors.wire import bare
from instar.errors import DataError, PlanError, UnknownNameError
from instar.gate import baseline, reading, tasks
from instar.gate.predictions import Cases, Predictions

KINDS = (
    "a prediction file (.jsonl, .csv, .parquet), a frozen baseline, a folder of lm-evaluation-harness with --log_samples, "
    "a model (a folder, or the name of a packaged one), before:RECEIPT or after:RECEIPT, http(s)://…/v1#model, "
    "file.py:function or package.module:function"
)


@dataclass(frozen=True)
class Gathered:
    """Everything that `judge` and `freeze` take."""

    old: Predictions
    new: Predictions | None
    again: list[Predictions]
    cases: Cases | None
    task: str
    metric: str
    block: str


def gather(
    old: str,
    new: str | None,
    again: Sequence[str] = (),
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    cases: Cases | None = None,
    task: str = "",
    metric: str = "",
    block: str = "",
    progress: Callable[[str], Progress | None] = lambda name: None,
) -> Gathered:
    """Read or run both versions and the repeated runs of the old one.

    Args:
        old, new: see KINDS. A frozen baseline as `old` brings its items, repeated runs, task, metric and blocks along.
        again: each a file or folder that is read, `same` (run the old version once more as it is), or settings
            `name=value,…` with which it is run once more.
        settings: "old" and "new" -> settings of a version that is run.
        progress: called with the name of a version that is about to run.

    Raises what reading or running a version raises; PlanError for settings of what is only read.
    """
    given = {side: dict((settings or {}).get(side, {})) for side in ("old", "new")}
    frozen = baseline.load(Path(old).expanduser()) if _kind(old) == "baseline" else None
    if frozen is not None:
        cases, task = cases or frozen.cases, task or frozen.task
        metric, block = metric or frozen.metric, block or frozen.block
    if not metric and {_kind(one) for one in (old, new) if one is not None} == {"lm_eval"}:
        metric = "score"  # the harness's own; a baseline keeps it
    asked = task if task not in ("", "auto") or cases is None else tasks.of_cases(cases)

    def answers(source: str, chosen: Mapping[str, Any]) -> Callable[[], Predictions]:
        return prepared(source, chosen, cases, asked, progress)

    # All are read or made before any is run: a slip in what is said of the new one shows before the old one has run for an hour.
    first = answers(old, given["old"]) if frozen is None else lambda: frozen.old
    repeated: list[Callable[[], Predictions]] = []
    for one in again:
        if _kind(one) in READ:
            same = _kind(one) == _kind(old) == "lm_eval"  # its metric and filter are those of the first run
            repeated.append(answers(one, given["old"] if same else {}))
        elif _kind(old) in READ:
            raise PlanError(
                f"--again {one} would run {old} once more, but that is only read; give --again a file of its second run."
            )
        else:
            repeated.append(answers(old, {**given["old"], **({} if one == "same" else pairs(one.split(",")))}))
    second = None if new is None else answers(new, given["new"])
    return Gathered(
        first(),
        second and second(),
        [*(frozen.again if frozen is not None else ()), *(run() for run in repeated)],
        cases,
        asked if cases is not None else task,
        metric,
        block,
    )


def pairs(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as settings. Raises PlanError."""
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise PlanError(f"A setting reads name=value; received '{one}'.")
        found[name.strip()] = value
    return found


def prepared(
    source: str, settings: Mapping[str, Any], cases: Cases | None, task: str, progress: Callable[[str], Progress | None]
) -> Callable[[], Predictions]:
    """What gives the predictions of `source`: it is read now, or made ready to run. Raises what reading or making it raises."""
    kind, path = _kind(source), Path(source).expanduser()
    if kind in READ:
        found = _read(kind, path, source, settings)
        return lambda: found
    version = version_of(source, settings)
    if cases is None:
        raise PlanError(
            f"{bare(source)} is run, so it needs the items to be asked: --data FILE with 'id' and 'input' (and 'label')."
        )
    return lambda: version.run(cases, task, progress(version.name))


def _read(kind: str, path: Path, source: str, settings: Mapping[str, Any]) -> Predictions:
    if kind == "lm_eval":
        from instar.doors import lm_eval

        if unknown := settings.keys() - {"metric", "filter"}:
            raise UnknownNameError.among("setting of lm-evaluation-harness samples", min(unknown), ("metric", "filter"))
        return lm_eval.read(path, **settings, name=source)
    if settings:
        raise PlanError(f"{source} is read, not run, so it takes no settings; received {', '.join(settings)}.")
    return baseline.load(path).old if kind == "baseline" else reading.predictions(path, source)


def version_of(source: str, settings: Mapping[str, Any]) -> Version:
    """The version behind a name that has to be run. Raises DataError when it is nothing that is known."""
    kind = _kind(source)
    if kind == "endpoint":
        from instar.doors.openai import Endpoint

        return Endpoint(source, settings)
    if kind == "receipt":
        from instar.doors.receipts import RecordedModel

        return RecordedModel(source, settings)
    if kind == "function":
        from instar.doors.functions import Function

        return Function(source, settings)
    if kind == "decoder":
        from instar.doors.decoder import DecoderModel

        return DecoderModel(source, settings)
    if kind == "unknown":
        what = "is no kind of file that is known" if Path(source).is_file() else "does not exist"
        raise DataError(f"{bare(source)} {what}. A version is {KINDS}.")
    from instar.doors.hf import TransformersModel

    return TransformersModel(source, settings)


def cases(data: str, *, examples: Path | None = None, documents: Path | None = None) -> Cases:
    """The items of an evaluation file, or of a data set with a name. Raises DataError, UnknownNameError."""
    if Path(data).suffix:
        return reading.cases(Path(data), examples=examples, documents=documents)
    if data == "clinc150":
        from instar.data.intents import clinc150_cases

        return clinc150_cases()
    raise UnknownNameError(
        f"'{data}' is neither an evaluation file ({', '.join(reading.KINDS)}) nor a data set of the gate (clinc150)."
    )


_OF_A_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""owner/name; a name such as Qwen2.5-0.5B has no suffix."""
READ = ("file", "baseline", "lm_eval")
"""Kinds that are read; all others are run."""


def _kind(source: str) -> str:
    """file, baseline, lm_eval; endpoint, receipt, function, decoder, transformers (or the name of a packaged model); unknown."""
    if source.startswith(("http://", "https://")):
        return "endpoint"
    if source.startswith(("before:", "after:")):
        return "receipt"
    path = Path(source).expanduser()
    if path.suffix.lower() in reading.KINDS:
        return "file"
    if os.path.isdir(path):  # noqa: PTH112 - a text too long for a name is no folder, and no error
        return _kind_of_folder(path)
    if ":" in source and not os.path.exists(path):  # noqa: PTH110
        return "function"
    if os.path.isfile(path):  # noqa: PTH113
        return "unknown"
    return "unknown" if path.suffix and not _OF_A_HUB.fullmatch(source) else "transformers"


def _kind_of_folder(path: Path) -> str:
    from instar.doors import lm_eval

    if baseline.recognised(path):
        return "baseline"
    if lm_eval.matches(path):
        return "lm_eval"
    from instar.doors import decoder

    return "decoder" if decoder.recognised(path) else "transformers"
