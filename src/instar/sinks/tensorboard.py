"""TensorBoard: an event file a run, written by the package `tensorboard` without TensorFlow or torch."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.sinks.sink import Run, Sink


class TensorBoardSink(Sink):
    """Writes `FOLDER/PROBLEM/METHOD-seed-N-ID/`, which `tensorboard --logdir FOLDER` shows: the curve of the loss by step, the
    figures at the last step, and the settings as a text. A run whose folder is there is not written again.

    Args:
        where: the folder. Raises OutputError, MissingExtraError.
    """

    def __init__(self, where: str) -> None:
        self.folder = files.folder(Path(where))
        self._events = extras.require("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = extras.require("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        self._summary = extras.require("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._tensor = extras.require("tensorboard.compat.proto.tensor_pb2", "tensorboard").TensorProto
        self._shape = extras.require("tensorboard.compat.proto.tensor_shape_pb2", "tensorboard").TensorShapeProto

    def put(self, run: Run) -> None:
        place = self.folder / _safe(run.group or "runs") / f"{_safe(run.name)}-{_safe(run.id)}"
        if place.exists():
            return
        files.folder(place.parent)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".part-") as room:  # whole or not at all
            part = Path(room) / place.name
            writer = self._events.EventFileWriter(str(part))
            try:
                for event in self._made(run):
                    writer.add_event(event)
            finally:
                writer.close()
            part.rename(place)

    def _made(self, run: Run) -> list[Any]:
        """The events of a run, in the order of time."""
        last = run.curve[-1][0] if run.curve else 0
        pace = (run.ended - run.started) / max(1, last)
        found = [self._scalar("train/loss", loss, step, run.started + step * pace) for step, loss in run.curve]
        found += [self._scalar(name, value, last, run.ended) for name, value in run.figures.items()]
        lines = [f"    {key} = {value}" for key, value in sorted({**run.settings, "status": run.reason}.items())]
        return [*found, self._event(step=last, wall_time=run.ended, summary=self._text("settings", "\n".join(lines)))]

    def _scalar(self, tag: str, value: float, step: int, when: float) -> Any:
        summary = self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, simple_value=value)])
        return self._event(step=step, wall_time=when, summary=summary)

    def _text(self, tag: str, text: str) -> Any:
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        shape = self._shape(dim=[self._shape.Dim(size=1)])
        tensor = self._tensor(dtype="DT_STRING", string_val=[text.encode("utf-8", "replace")], tensor_shape=shape)
        metadata = self._summary.SummaryMetadata(plugin_data=plugin)
        return self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _safe(name: str) -> str:
    """A name that is one folder on every system."""
    return re.sub(r"[^\w.=-]+", "-", name).strip(".-") or "run"
