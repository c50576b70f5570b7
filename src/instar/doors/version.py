"""A version of a model that can be asked: the one interface of the doors that run models, endpoints and functions."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from instar.errors import UnknownNameError
from instar.gate.predictions import Cases, Predictions

TASKS = ("classification", "multiple_choice", "generation", "retrieval", "regression")


class Progress(Protocol):
    """Told how many of the items are answered."""

    def __call__(self, done: int, total: int) -> None: ...


class Version(abc.ABC):
    """Something that answers cases: a local model, an endpoint, a function.

    Whatever can be known to be wrong before anything runs (a setting, a missing file) is refused when a version is made, so
    that the new one fails before the old one has run for an hour.

    Args:
        source: what the user named (a folder, an address, `file.py:function`).
        settings: of this version alone, from `--old name=value` or `--new name=value`; unknown names are refused.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = {}
    """Setting -> what it means, for help and for messages."""

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        self.source = source
        self.settings = dict(settings or {})
        for name in self.settings:
            if name not in self.SETTINGS:
                raise UnknownNameError.among(f"setting of {source}", name, self.SETTINGS)

    @property
    def name(self) -> str:
        """The source with its settings, as a person would write it."""
        values = {name: " ".join(str(value).split()) for name, value in self.settings.items()}
        told = ", ".join(f"{name}={value}" if len(value) <= 40 else f"{name}={value[:39]}…" for name, value in values.items())
        return f"{self.source} ({told})" if told else self.source

    @abc.abstractmethod
    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """Answer every case, in order. `task` is one of TASKS.

        outputs: classification: a label · multiple_choice: the text of the chosen answer · generation: text · retrieval: ids
        of documents, best first · regression: a number or a list of numbers. labels, columns and inputs are those of the cases.
        An item that cannot be answered has the output None and its reason in `errors`; what makes every answer impossible
        (no such model, endpoint down at the first call) raises DataError or ModelError.
        """


def require_task(task: str) -> None:
    """Raise UnknownNameError for what is no task."""
    if task not in TASKS:
        raise UnknownNameError.among("task", task, TASKS)
