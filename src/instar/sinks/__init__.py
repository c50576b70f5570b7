"""Trackers that people have already: each record is sent to them when it is made. None is used unless it is asked for.

The record stays what counts: a tracker is a copy of it, and one that fails is told about and changes nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from instar.errors import OutputError, UnknownNameError
from instar.sinks.sink import Sink

__all__ = ["KINDS", "Sink", "open_sink"]

KINDS = {"tensorboard": "TensorBoardSink", "mlflow": "MLflowSink", "trackio": "TrackioSink"}


def open_sink(text: str) -> Sink:
    """A sink by what the command line calls it: tensorboard:FOLDER, mlflow:URI or trackio:PROJECT.

    Raises UnknownNameError, OutputError where it cannot be opened, MissingExtraError.
    """
    kind, colon, where = text.partition(":")
    if kind not in KINDS:
        raise UnknownNameError.among("sink", kind, KINDS)
    if not colon or not where:
        raise OutputError(f"The sink '{text}' does not say where: tensorboard:FOLDER, mlflow:URI or trackio:PROJECT.")
    make: Callable[[str], Sink] = getattr(importlib.import_module(f"instar.sinks.{kind}"), KINDS[kind])
    return make(where)
