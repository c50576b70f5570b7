"""Ways to read and write the bytes of a store: past the page cache, through it, mapped, or in memory at a given pace.

What lies in pinned memory, for parameters on a CUDA device, is in `pinned`.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from instar.errors import StoreError, UnknownNameError
from instar.optim.offload.memory import HOST

Mode = Literal["direct", "buffered", "mmap", "throttled", "pinned"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Medium(abc.ABC):
    """Bytes at offsets. `read` and `write` may be called from two threads at once; both release the interpreter's lock."""

    emulated: ClassVar[bool] = False
    """Whether it stands for hardware that is not there: figures measured on it are to be labelled so."""

    stamped: ClassVar[bool] = True
    """Whether extents carry stamps, by which a torn or lost write is seen."""

    new: bool
    """Whether nothing of an earlier process is in it."""

    def clear(self, buffer: Tensor) -> None:
        """Fill uint8 [n] with zeros."""
        buffer.zero_()

    def handed_on(self) -> None:  # noqa: B027 - only devices have to be told
        """Told by who updates buffers, before a write of one begins: a device does later what it was told to."""

    @abc.abstractmethod
    def read(self, offset: int, buffer: Tensor) -> None:
        """Fill uint8 [n] from `offset`. Raises StoreError."""

    @abc.abstractmethod
    def write(self, offset: int, buffer: Tensor) -> None:
        """Store uint8 [n] at `offset`. Raises StoreError."""

    @abc.abstractmethod
    def sync(self) -> None:
        """Return when what was written survives a loss of power."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release files and memory."""


class File(Medium):
    """pread and pwrite on one file, which this process alone holds.

    Args:
        path: of the file; a folder, or None for that of temporary files, gets a file without a name that is gone with the
        process. nbytes: its size; the room is reserved at once, so that a full disk is found before training. direct:
        O_DIRECT, past the page cache.

    Raises StoreError, also for a file that another process uses or that is shorter than `nbytes`.
    Without `direct`, pages that were read are dropped from the cache again, so that it holds no second copy of the state.
    """

    def __init__(self, path: Path | None, nbytes: int, *, direct: bool = False) -> None:
        self.path, self.direct = path or Path(tempfile.gettempdir()), direct
        named = not self.path.is_dir()
        flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0)
        self.new = not named or not self.path.exists() or self.path.stat().st_size == 0
        try:
            if not named:
                descriptor, name = tempfile.mkstemp(prefix="optimiser-state-", dir=self.path)
                os.close(descriptor)
                self.descriptor = os.open(name, flags)
                os.unlink(name)  # noqa: PTH108 - a plain string from mkstemp
            else:
                self.descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise StoreError(_refused(self.path, direct, error)) from error
        try:
            self._hold(nbytes)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._closing = weakref.finalize(self, os.close, self.descriptor)  # who forgets to close keeps no room on the disk

    def _hold(self, nbytes: int) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{self.path} is in use by another optimiser. Wait for it, or give another path.") from error
        size = os.fstat(self.descriptor).st_size
        if self.new:
            try:
                os.posix_fallocate(self.descriptor, 0, nbytes)
            except OSError as error:
                if not self.path.is_dir():
                    self.path.unlink(missing_ok=True)
                raise StoreError(f"{self.path}: no room for {nbytes} bytes of optimiser state ({error.strerror}).") from error
        elif size != nbytes:
            raise StoreError(
                f"{self.path} has {size} bytes; the store of this model, subgroup size and mode of recovery has {nbytes}. It is "
                "truncated or another's. Nothing was changed; delete it to start again, or give another path."
            )

    def read(self, offset: int, buffer: Tensor) -> None:
        view = buffer.numpy().data
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self.descriptor, [view[done:]], offset + done)
                if got == 0:
                    raise StoreError(f"{self.path} ends at byte {offset + done}: it was truncated while in use.")
                done += got
        except OSError as error:
            raise StoreError(f"Reading {len(view)} bytes of {self.path} at {offset}: {error.strerror}.") from error
        if not self.direct:
            os.posix_fadvise(self.descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)

    def write(self, offset: int, buffer: Tensor) -> None:
        view = buffer.numpy().data
        done = 0
        try:
            while done < len(view):
                done += os.pwritev(self.descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise StoreError(f"Writing {len(view)} bytes of {self.path} at {offset}: {error.strerror}.") from error

    def sync(self) -> None:
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            raise StoreError(f"{self.path} could not be made durable: {error.strerror}.") from error

    def close(self) -> None:
        self._closing()


class Mapped(File):
    """The same file, mapped: reading and writing are copies, and the kernel moves pages. What was copied is unmapped again."""

    def __init__(self, path: Path | None, nbytes: int) -> None:
        super().__init__(path, nbytes)
        self._map = mmap.mmap(self.descriptor, nbytes, mmap.MAP_SHARED)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def read(self, offset: int, buffer: Tensor) -> None:
        buffer.copy_(self._bytes[offset : offset + len(buffer)])
        self._map.madvise(mmap.MADV_DONTNEED, offset, len(buffer))

    def write(self, offset: int, buffer: Tensor) -> None:
        self._bytes[offset : offset + len(buffer)].copy_(buffer)
        self._map.madvise(mmap.MADV_DONTNEED, offset, len(buffer))  # of a shared mapping: dirty pages stay in the cache

    def close(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        with contextlib.suppress(BufferError):  # a tensor of someone else still looks at it
            self._map.close()
        super().close()


class Throttled(Medium):
    """EMULATED: memory behind two token buckets, to see a disk that this machine has not. Its memory is in no budget.

    Args:
        nbytes: of it. read_rate, write_rate: bytes a second, each direction alone (a duplex link).
    """

    emulated = True

    def __init__(self, nbytes: int, read_rate: float, write_rate: float) -> None:
        self.new = True
        self._bytes = torch.zeros(nbytes, dtype=torch.uint8)
        self._reading, self._writing = _Bucket(read_rate), _Bucket(write_rate)

    def read(self, offset: int, buffer: Tensor) -> None:
        until = self._reading.take(len(buffer))
        buffer.copy_(self._bytes[offset : offset + len(buffer)])
        _wait(until)

    def write(self, offset: int, buffer: Tensor) -> None:
        until = self._writing.take(len(buffer))
        self._bytes[offset : offset + len(buffer)].copy_(buffer)
        _wait(until)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)


class _Bucket:
    """Tokens that fill at a rate; nothing is saved up while nobody asks."""

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise StoreError(f"A rate is more than 0 bytes a second; received {rate}.")
        self.rate, self._free, self._lock = rate, 0.0, threading.Lock()

    def take(self, nbytes: int) -> float:
        """When these bytes will have passed."""
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + nbytes / self.rate
            return self._free


def _wait(until: float) -> None:
    while (left := until - time.perf_counter()) > 0:
        time.sleep(left)


def _refused(path: Path, direct: bool, error: OSError) -> str:
    if direct and error.errno == errno.EINVAL:
        return f"The file system of {path} has no direct I/O; use the mode 'buffered', or a folder on a disk."
    return f"{path} cannot be opened for optimiser state: {error.strerror}."


def opened(mode: Mode, path: Path | None, nbytes: int, rate: float, device: torch.device = HOST) -> Medium:
    """A medium of this mode for buffers on `device`. Raises StoreError, UnknownNameError."""
    if mode == "pinned":
        from instar.optim.offload.pinned import Pinned

        return Pinned(nbytes, device)
    if mode == "direct" or mode == "buffered":
        return File(path, nbytes, direct=mode == "direct")
    if mode == "mmap":
        return Mapped(path, nbytes)
    if mode == "throttled":
        return Throttled(nbytes, rate, rate)
    raise UnknownNameError.among("mode of a store", mode, MODES)
