"""A few buffers between the store and the update, filled by a reader thread and emptied by a writer thread."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from instar.optim.offload.memory import MemoryBudget
from instar.optim.offload.store import Store


@dataclass
class _Buffer:
    bytes: Tensor
    holds: int | None = None
    """The subgroup whose moments are in it, or on their way into it."""
    reading: Future[None] | None = None
    writing: Future[None] | None = None
    dirty: bool = False
    """Whether it holds what the store has not been told to write."""
    began: int = 0
    """Which write this was of all."""


class Staging:
    """Extents on their way from and to the store.

    Args:
        store: of the extents. memory: the budget. count: buffers, from 1. background: reader and writer threads; without them
        every transfer is waited for (the sequential schedule).

    A buffer is read into only when what it held before is written, and an extent is read only when its own last write is done.
    """

    def __init__(self, store: Store, memory: MemoryBudget, count: int, *, background: bool) -> None:
        self.store, self.background = store, background
        self._memory = memory
        self._buffers = [_Buffer(memory.take(store.layout.extent, f"Staging buffer {n + 1} of {count}")) for n in range(count)]
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="optimiser-state-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="optimiser-state-writer")
        self._written: dict[int, Future[None]] = {}
        self._steps: dict[int, int] = {}
        self._writes = 0

    def __len__(self) -> int:
        return len(self._buffers)

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to read subgroups, in this order, as far as there are free buffers."""
        for number in numbers:
            if self._of(number) is None:
                buffer = self._free()
                if buffer is None:
                    return
                self._read(buffer, number)

    def take(self, number: int) -> Tensor:
        """The moments of a subgroup, as a buffer of one extent. Raises StoreError."""
        buffer = self._of(number)
        if buffer is None:
            buffer = self._free() or self._evict()
            self._read(buffer, number)
        if buffer.reading is not None:
            buffer.reading.result()
            buffer.reading = None
        return buffer.bytes

    def done(self, number: int, step: int, *, keep: bool = False) -> None:
        """What `take` gave is updated: write it back, or `keep` it here for a step that begins with it."""
        buffer = self._of(number)
        assert buffer is not None  # only what was taken is done
        self._steps[number] = step
        buffer.dirty = True
        if not keep:
            self._write(buffer)

    def drop(self, wanted: set[int]) -> None:
        """Free buffers of subgroups that are not wanted; what is dirty is written first."""
        for buffer in self._buffers:
            if buffer.holds is not None and buffer.holds not in wanted:
                self._release(buffer)

    def settle(self) -> None:
        """Wait until the store holds everything. Raises StoreError where a write failed."""
        for buffer in self._buffers:
            if buffer.dirty:
                self._write(buffer, hold=True)
        for buffer in self._buffers:
            for future in (buffer.reading, buffer.writing):
                if future is not None:
                    future.result()
            buffer.reading = buffer.writing = None
        self._written.clear()

    def invalidate(self) -> None:
        """Forget what is in the buffers, once nothing moves: the store has been changed otherwise."""
        for buffer in self._buffers:
            buffer.holds, buffer.dirty = None, False

    def scratch(self) -> Tensor:
        """A buffer to be used otherwise, after `settle`; what it held is forgotten here."""
        buffer = self._buffers[0]
        buffer.holds = None
        return buffer.bytes

    def close(self) -> None:
        """End the threads and give the buffers back; what is dirty is lost."""
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        for buffer in self._buffers:
            self._memory.give_back(buffer.bytes)
        self._buffers = []

    def _of(self, number: int) -> _Buffer | None:
        return next((b for b in self._buffers if b.holds == number), None)

    def _free(self) -> _Buffer | None:
        """A buffer that holds nothing that is needed: one at rest, or else the one whose write began first."""
        found = [b for b in self._buffers if b.holds is None]
        return min(found, key=lambda b: b.began if b.writing is not None and not b.writing.done() else 0, default=None)

    def _evict(self) -> _Buffer:
        """Make room where all buffers hold something for later."""
        buffer = self._buffers[-1]
        self._release(buffer)
        return buffer

    def _release(self, buffer: _Buffer) -> None:
        if buffer.reading is not None:
            buffer.reading.result()
            buffer.reading = None
        if buffer.dirty:
            self._write(buffer)
        buffer.holds = None

    def _read(self, buffer: _Buffer, number: int) -> None:
        before = [f for f in (buffer.writing, self._written.get(number)) if f is not None]

        def read() -> None:
            for write in before:
                write.result()
            if self.store.written(number):
                self.store.read(number, buffer.bytes)
            else:
                self.store.medium.clear(buffer.bytes)

        buffer.holds, buffer.writing = number, None
        if self.background:
            buffer.reading = self._reader.submit(read)
        else:
            read()

    def _write(self, buffer: _Buffer, *, hold: bool = False) -> None:
        number = buffer.holds
        assert number is not None  # only what holds something is dirty
        step = self._steps[number]
        buffer.dirty = False
        self._writes += 1
        buffer.began = self._writes
        if not hold:
            buffer.holds = None
        self.store.medium.handed_on()
        if self.background:
            buffer.writing = self._written[number] = self._writer.submit(self.store.write, number, buffer.bytes, step)
        else:
            self.store.write(number, buffer.bytes, step)
