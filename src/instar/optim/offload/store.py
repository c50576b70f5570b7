"""One file of extents: the moments of every subgroup, twice where they must survive a crash, and records of what is committed.

    record A | record B | extents: slot 0 of all subgroups, slot 1 of all | weights: slot 0 of all, slot 1 of all

A committed extent is never overwritten: the first write after a commit goes to the other slot, and the next commit makes that one
valid by writing the other record. A crash at any instant thus leaves the last commit whole. Each extent is stamped at both ends,
before its data is written, with the commit and the step that it is for, so that a torn or lost write is seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instar.errors import StoreError
from instar.optim.offload.layout import TAIL, Layout
from instar.optim.offload.media import Medium, Mode, opened
from instar.optim.offload.memory import HOST, PAGE, aligned, rounded

_MAGIC = b"INSTAROS"
_RECORD = struct.Struct("<8sQQ32s")  # magic, sequence, bytes of the text, their SHA-256
_STAMP = struct.Struct("<16s3Q")  # layout, subgroup, sequence of the commit it is for, step
_PAYLOAD = 1 << 16


@dataclass(frozen=True)
class StoreSpec:
    """Where the state lies and how it is reached.

    Args:
        path: a file, which keeps what is committed and is found again after a crash; or a folder, which gets a scratch file
            without a name. None is the folder for temporary files.
        mode: `direct` (O_DIRECT), `buffered` (pread and pwrite), `mmap` (copies from and to a mapping), `throttled`, which is
            EMULATED: memory at `rate` bytes a second in each direction, outside of every budget; or `pinned`: page-locked memory
            for parameters on a CUDA device, which has NEVER BEEN RUN.
    """

    path: str | Path | None = None
    mode: Mode = "buffered"
    rate: float = 2e9

    @property
    def folder(self) -> Path | None:
        """Where scratch files lie; None is the folder for temporary files."""
        if self.path is None or Path(self.path).is_dir():
            return None if self.path is None else Path(self.path)
        return Path(self.path).parent

    @property
    def recoverable(self) -> bool:
        """Whether there is a file that outlives the process."""
        return self.path is not None and self.mode not in ("throttled", "pinned") and not Path(self.path).is_dir()


class Store:
    """Extents of one layout. `read` and `write` may run in two threads, on different subgroups.

    Args:
        spec: where. layout: of the subgroups. shapes: of the parameters. device: of the buffers.

    Raises StoreError for a file that is truncated, damaged, in use, or of another model or subgroup size; it is then unchanged.
    """

    def __init__(self, spec: StoreSpec, layout: Layout, shapes: list[tuple[int, ...]], device: torch.device = HOST) -> None:
        self.spec, self.layout = spec, layout
        self.count = len(layout.subgroups)
        self.slots = 2 if spec.recoverable else 1
        self._fingerprint = layout.fingerprint(shapes)
        self._record_bytes = rounded(2 * _PAYLOAD + 96 * self.count + 48 * len(shapes)) if spec.recoverable else 0
        self._weights_from = 2 * self._record_bytes + self.slots * self.count * layout.extent
        weights = self.slots * self.count * layout.weights_extent if spec.recoverable else 0
        self.nbytes = max(self._weights_from + weights, PAGE)
        path = None if spec.path is None else Path(spec.path)
        self.medium: Medium = opened(spec.mode, path, self.nbytes, spec.rate, device)
        self.sequence = 0
        self._slot = [-1] * self.count  # of what is newest; -1: never written
        self._committed = [-1] * self.count
        self._stamps = [(0, 0)] * self.count
        self._weights_slot = [-1] * self.count
        self.facts: dict[str, Any] | None = None
        """What the last commit says; None before the first."""
        self._unsure = False
        """Whether a commit failed when its record may have been written: nobody knows then which of two extents is valid."""
        if spec.recoverable and not self.medium.new:
            try:
                self._recover()
            except BaseException:
                self.close()
                raise

    def written(self, number: int) -> bool:
        """Whether there is anything to read of a subgroup; its moments are 0 before."""
        return self._slot[number] >= 0

    def read(self, number: int, buffer: Tensor) -> None:
        """The newest moments of a subgroup, into a buffer of `layout.extent` bytes. Raises StoreError."""
        self.medium.read(self._place(number, self._slot[number]), buffer)
        if self.medium.stamped:
            _check(buffer, self._stamp(number, self._stamps[number]), f"the state of subgroup {number}")

    def write(self, number: int, buffer: Tensor, step: int) -> None:
        """Moments as they are after `step`. What the last commit holds stays. Raises StoreError."""
        self.require_sure()
        slot, committed = self._slot[number], self._committed[number]
        if slot < 0 or slot == committed:
            slot = 1 if committed == 0 and self.slots == 2 else 0
        stamp = (self.sequence + 1, step)
        if self.medium.stamped:
            _put(buffer, self._stamp(number, stamp))
        self.medium.write(self._place(number, slot), buffer)
        self._slot[number], self._stamps[number] = slot, stamp

    def require_sure(self) -> None:
        """Raise StoreError where a commit failed so late that nobody knows whether it stands."""
        if self._unsure:
            raise StoreError(
                "A commit failed at its end, so that it may be on the disk or not, and nothing is written any more. Make a new "
                "optimiser on the same file: it goes back to the last commit that is there. save() still gives the state of now."
            )

    def forget(self, number: int) -> None:
        """Take the moments of a subgroup as 0 again."""
        self._slot[number] = -1

    @contextlib.contextmanager
    def committing(self, buffer: Tensor, facts: dict[str, Any], step: int) -> Iterator[Any]:
        """Give a function (number) that stores the weights which were put into `buffer`; then make all of it the last commit.

        Everything that `write` stored before is part of it. An exception leaves the commit before as it was; where it comes so
        late that this one may be on the disk already, nothing can be written any more. Raises StoreError.
        """
        self.require_sure()
        text = json.dumps(facts)
        if len(text) > self._record_bytes - 96 * self.count - _PAYLOAD:
            raise StoreError(
                f"What a commit says besides the state may have {_PAYLOAD} bytes of JSON; received {len(text)} in all."
            )
        slots = [1 - max(slot, 0) for slot in self._weights_slot]

        def put(number: int) -> None:
            _put(buffer, self._stamp(number, (self.sequence + 1, step)))
            self.medium.write(self._weights_place(number, slots[number]), buffer)

        yield put
        self.medium.sync()
        self._write_record(self.sequence + 1, {
            "layout": self._fingerprint,
            "slots": self._slot,
            "stamps": self._stamps,
            "weights": slots,
            "step": step,
            "facts": facts,
        })  # fmt: skip
        self.medium.sync()
        self.sequence += 1
        self._committed, self._weights_slot, self.facts = list(self._slot), slots, facts
        self._unsure = False

    def read_weights(self, number: int, buffer: Tensor, step: int) -> None:
        """The committed parameters of a subgroup, into a buffer of `layout.weights_extent` bytes. Raises StoreError."""
        self.medium.read(self._weights_place(number, self._weights_slot[number]), buffer)
        _check(buffer, self._stamp(number, (self.sequence, step)), f"the weights of subgroup {number}")

    def close(self) -> None:
        """Release the file."""
        self.medium.close()

    def _recover(self) -> None:
        """Go back to the last commit, where there is one."""
        found = [record for record in map(self._read_record, (0, 1)) if record is not None]
        if not found:
            page = aligned(PAGE)
            self.medium.read(0, page)
            if bytes(page.numpy()[: len(_MAGIC)]) not in (_MAGIC, bytes(len(_MAGIC))):
                raise StoreError(f"{self.spec.path} is no store of optimiser state. Nothing was changed; give another path.")
            return
        self.sequence, record = max(found, key=lambda pair: pair[0])
        if record["layout"] != self._fingerprint:
            raise StoreError(
                f"{self.spec.path} holds the state of another model, or of other subgroups or parameter groups. Nothing was "
                "changed; give another path, or the arguments that it was made with."
            )
        self._slot, self._weights_slot = list(record["slots"]), list(record["weights"])
        self._committed = list(self._slot)
        self._stamps = [(sequence, step) for sequence, step in record["stamps"]]
        self.facts = record["facts"]

    def _write_record(self, sequence: int, record: dict[str, Any]) -> None:
        text = json.dumps(record).encode()
        if _RECORD.size + len(text) > self._record_bytes:
            raise StoreError(f"The record of this commit has {len(text)} bytes; there is room for {self._record_bytes}.")
        buffer = aligned(self._record_bytes)
        head = _RECORD.pack(_MAGIC, sequence, len(text), hashlib.sha256(text).digest())
        view = buffer.numpy().data
        view[: len(head)] = head
        view[len(head) : len(head) + len(text)] = text
        # From here on this record may be the durable one. Who went on after a failure would write over what it stands for.
        self._unsure = True
        self.medium.write(sequence % 2 * self._record_bytes, buffer)

    def _read_record(self, which: int) -> tuple[int, dict[str, Any]] | None:
        buffer = aligned(self._record_bytes)
        self.medium.read(which * self._record_bytes, buffer)
        whole = bytes(buffer.numpy())
        magic, sequence, length, digest = _RECORD.unpack_from(whole)
        text = whole[_RECORD.size : _RECORD.size + length]
        if magic != _MAGIC or hashlib.sha256(text).digest() != digest:
            return None  # never written, or torn: the other one is whole
        return sequence, json.loads(text)

    def _place(self, number: int, slot: int) -> int:
        return 2 * self._record_bytes + (slot * self.count + number) * self.layout.extent

    def _weights_place(self, number: int, slot: int) -> int:
        return self._weights_from + (slot * self.count + number) * self.layout.weights_extent

    def _stamp(self, number: int, stamp: tuple[int, int]) -> bytes:
        return _STAMP.pack(bytes.fromhex(self._fingerprint)[:16], number, *stamp)


def _put(buffer: Tensor, stamp: bytes) -> None:
    view = buffer.numpy().data
    view[: len(stamp)] = view[len(view) - TAIL : len(view) - TAIL + len(stamp)] = stamp


def _check(buffer: Tensor, stamp: bytes, what: str) -> None:
    view = buffer.numpy().data
    if bytes(view[: len(stamp)]) != stamp or bytes(view[len(view) - TAIL : len(view) - TAIL + len(stamp)]) != stamp:
        raise StoreError(
            f"The store is damaged: {what} is not the one that was written last. Delete the file and go on from a checkpoint."
        )
