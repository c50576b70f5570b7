"""State in pinned main memory, for parameters on a CUDA device: what moves goes over the link on streams of its own.

NEVER RUN: it was written on machines without such a device, and only its refusals are tested there.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from instar.errors import StoreError
from instar.optim.offload.media import Medium


class Pinned(Medium):
    """Page-locked main memory, which a device reads and writes while it updates something else.

    Args:
        nbytes: of it; they are in no budget, which is of the device's memory. device: of the buffers.

    Each direction has a stream, and `read` and `write` return when the device has done them: who calls them (the threads of
    `staging`) needs to know of no stream. A write waits for the updates that were handed on before it. Nothing survives the
    process, so that no extent is stamped.
    Raises StoreError without a CUDA device, and where so much memory cannot be pinned.
    """

    stamped: ClassVar[bool] = False

    def __init__(self, nbytes: int, device: torch.device) -> None:
        if device.type != "cuda":
            raise StoreError(
                f"The mode 'pinned' is for parameters on a CUDA device; received {device}. For parameters in main memory use "
                "'buffered', 'direct' or 'mmap'."
            )
        try:
            self._bytes = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise StoreError(
                f"{nbytes} bytes of main memory cannot be pinned for {device} ({str(error).splitlines()[0]}). Fewer bytes are "
                "stored with a larger budget or a smaller ratio."
            ) from error
        self.new = True
        self._device = device
        self._reading, self._writing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._updated = torch.cuda.Event()

    def clear(self, buffer: Tensor) -> None:
        with torch.cuda.stream(self._reading):
            buffer.zero_()
        self._reading.synchronize()

    def handed_on(self) -> None:
        self._updated.record(torch.cuda.current_stream(self._device))

    def read(self, offset: int, buffer: Tensor) -> None:
        with torch.cuda.stream(self._reading):
            buffer.copy_(self._bytes[offset : offset + len(buffer)], non_blocking=True)
        self._reading.synchronize()

    def write(self, offset: int, buffer: Tensor) -> None:
        self._writing.wait_event(self._updated)
        with torch.cuda.stream(self._writing):
            self._bytes[offset : offset + len(buffer)].copy_(buffer, non_blocking=True)
        self._writing.synchronize()

    def sync(self) -> None:
        """Nothing survives the process."""

    def close(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
