"""A limit of rows per second that never bursts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from instar.errors import ShapeError

_SLICE = 0.25
"""Longest single sleep, so that a request to stop is heard."""


class Throttle:
    """Keeps work at or below `rate` rows a second at every moment: time that was lost is not made up for.

    Args:
        rate: rows a second; None does not limit.
        clock, sleep: in seconds; replaceable.
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ShapeError(f"A rate is a positive number of rows a second; received {rate}.")
        self.rate, self._clock, self._sleep = rate, clock, sleep
        self._free_at = -math.inf

    def batch(self, wanted: int) -> int:
        """The largest batch up to `wanted` that is no burst: the rows of one second."""
        return wanted if self.rate is None else max(1, min(wanted, int(self.rate)))

    def wait(self, rows: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Before `rows` rows are worked on: sleep until those before them have had their time, or until `stop()`."""
        if self.rate is None:
            return
        while (left := self._free_at - self._clock()) > 0 and not stop():
            self._sleep(min(left, _SLICE))
        self._free_at = max(self._clock(), self._free_at) + rows / self.rate
