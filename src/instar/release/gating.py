"""The gate between two stored versions, kept beside the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instar import files
from instar.data import pretrained
from instar.doors import opening
from instar.doors.version import Progress
from instar.gate import judge, page, reading
from instar.gate.policy import Policy
from instar.gate.predictions import Cases
from instar.gate.result import Result, as_json
from instar.release.writing import GATE

LARGE = 1 << 30
"""Bytes of weights in a half precision from which both versions are asked in that precision: float32 would double them."""


def gate(
    before: str | Path,
    after: Path,
    cases: Cases,
    *,
    task: str = "",
    metric: str = "",
    policy: Policy | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    folder: Path | None = None,
    progress: Callable[[str], Progress | None] = lambda name: None,
) -> Result:
    """Ask both versions the same cases, judge, and write `gate/`: record, page, answers.

    settings: of both versions (such as `batch`); their weights are loaded in float32, those of `LARGE` models as stored.
    folder: in which it is written, by default the new version's. Raises what running a version and judging raise; then nothing
    is written.
    """
    both = {**_precision(before), **(settings or {})}
    found = opening.gather(
        str(before),
        str(after),
        settings={"old": both, "new": both},
        cases=cases,
        task=task,
        metric=metric,
        progress=progress,
    )
    assert found.new is not None  # `after` was given
    result = judge.judge(found.old, found.new, policy=policy, task=found.task, metric=found.metric, cases=cases, command=command)
    folder = files.folder((folder or after) / GATE)
    answers: Sequence[tuple[str, Any]] = (("old", found.old), ("new", found.new))
    for name, predictions in answers:
        reading.write(folder / f"{name}.jsonl", predictions)
    files.write(folder / "result.json", as_json(result))
    files.write(folder / "page.html", page.render(result))
    return result


def _precision(before: str | Path) -> dict[str, str]:
    folder = pretrained.folder(before)
    stored = str(pretrained.stored_dtype(folder)).removeprefix("torch.")
    large = sum(path.stat().st_size for path in pretrained.weights(folder)) >= LARGE
    return {"dtype": stored} if large and stored in ("bfloat16", "float16") else {}
