"""Records on their way to sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from instar.bench.record import Record
from instar.sinks import open_sink
from instar.sinks.sink import runs


class Sending:
    """Several sinks as one: call it with each record.

    A sink that fails is named once to `note` and left out from then on: the records themselves are safe.
    """

    def __init__(self, named: Sequence[str], note: Callable[[str], None]) -> None:
        self.note = note
        self.failed: list[str] = []
        self._open = {name: open_sink(name) for name in dict.fromkeys(named)}

    def __call__(self, record: Record) -> None:
        for name, sink in list(self._open.items()):
            try:
                for run in runs(record):
                    sink.put(run)
            except Exception as error:  # whatever a tracker raises, the comparison goes on
                del self._open[name]
                self.failed.append(name)
                self.note(f"The sink {name} failed and is left out: {type(error).__name__}: {error}")
