"""Asks many questions of something that may fail: retries, a start that fails fast, a circuit breaker, a prompt stop."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from instar.doors.version import Progress
from instar.doors.wire import FailedError
from instar.errors import ModelError

FIRST = 3
"""When so many first items fail in the same way, nothing else is asked."""
_FEWER = 3
"""After so many failures in a row, nothing is asked twice any more."""
_IN_A_ROW = 10
"""After so many failures in a row, nothing is asked any more."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
"""Seconds before an item is asked again; each wait doubles. A server's Retry-After is honoured up to the longest."""
_BEAT = 0.2

Answer = TypeVar("Answer")


def refuse_hopeless(source: str, reasons: Sequence[str | None], total: int) -> None:
    """Raise ModelError when the first items of a run all failed in the same way.

    Args:
        source: what was asked.
        reasons: of the items that are finished, why each failed; None for one that did not.
        total: how many items there are.
    """
    first = list(reasons[:FIRST])
    if len(first) == min(FIRST, total) and first[0] is not None and len(set(first)) == 1:
        items = "the only item" if len(first) == 1 else f"the first {len(first)} items"
        raise ModelError(f"{source} answers none of {items}: {first[0]}.")


class Asking:
    """One run over all items.

    Args:
        source: what is asked, for messages.
        retries: how often an item is asked again after a failure that may pass.
        concurrency: how many items are asked at the same time.
    """

    def __init__(self, source: str, retries: int, concurrency: int) -> None:
        self.source, self.retries, self.concurrency = source, retries, concurrency
        self.retried = 0
        self._row = 0
        self._answered = False
        self._broken = ""
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def all(self, total: int, ask: Callable[[int], Answer], progress: Progress | None = None) -> list[Answer | FailedError]:
        """`ask(item)` for every item, in threads; the answers in order, FailedError where there is none.

        Raises ModelError when the first items fail alike; any other exception of `ask` or `progress` passes through.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        for item in range(total):
            todo.put(item)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((item, self.one(item, ask)))
                except BaseException as error:  # a thread hands every failure to the one that waits
                    done.put((item, error))

        # Daemons, not a pool: a pool is joined when Python exits, and an interrupt would wait for the slowest answer.
        for _ in range(min(self.concurrency, total)):
            threading.Thread(target=work, daemon=True).start()
        results: dict[int, Answer | FailedError] = {}
        reasons: list[str | None] = []
        try:
            while len(results) < total:
                try:
                    item, result = done.get(timeout=_BEAT)
                except queue.Empty:  # an interrupt is noticed between two waits, on every system
                    continue
                if isinstance(result, BaseException) and not isinstance(result, FailedError):
                    raise result
                results[item] = result
                reasons.append(result.reason if isinstance(result, FailedError) else None)
                if len(reasons) <= FIRST:
                    refuse_hopeless(self.source, reasons, total)
                if progress is not None:
                    progress(len(results), total)
        finally:
            self._stop.set()
        return [results[item] for item in range(total)]

    def one(self, item: int, ask: Callable[[int], Answer]) -> Answer:
        """`ask(item)` with the retries that are left to it. Raises FailedError."""
        chance = random.Random(item)
        for attempt in range(self.retries + 1):
            if self._broken:
                raise FailedError(f"not asked, since {self._broken}")
            try:
                answer = ask(item)
            except FailedError as error:
                last = attempt == self.retries or not error.retry or self._row >= _FEWER
                # Nobody listens and nobody ever did: a wrong address, which no patience mends.
                if last or (error.refused and not self._answered):
                    self._failed(error)
                    raise
                wait = _FIRST_WAIT * 2**attempt * chance.uniform(0.5, 1.0)
                with self._lock:
                    self.retried += 1
                if self._stop.wait(min(max(wait, error.wait), _LONGEST_WAIT)):
                    raise
            else:
                self._answered, self._row = True, 0
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _failed(self, error: FailedError) -> None:
        if error.down:
            with self._lock:
                self._row += 1
                if self._row >= max(_IN_A_ROW, self.concurrency) and not self._broken:
                    self._broken = f"{self._row} items in a row had failed, the last with: {error.reason}"
