"""Tensors whose memory is that of a file for a while: the system takes the pages back when it needs them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from instar.models import checkpoint, streaming


@contextlib.contextmanager
def aside(within: Path) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """A folder for the block, and what writes tensors there: they stay the same objects, and read the file from then on.

    Nobody may read them after the block. What is put aside raises OutputError, CheckpointError.
    """
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(dir=within, ignore_cleanup_errors=True) as folder:

        def put(tensors: Iterable[Tensor]) -> None:
            held = {str(place): tensor for place, tensor in enumerate(tensors)}
            path = Path(folder) / f"{next(numbers)}.safetensors"
            streaming.write(path, {name: streaming.Part.held(tensor) for name, tensor in held.items()})
            found, _ = checkpoint.read(path)
            for name, tensor in held.items():
                tensor.data = found[name]
            _give_back()

        yield put
        gc.collect()  # a model that was read there may hold itself, and some systems remove no file in use


def _give_back() -> None:
    """The C library of Linux keeps what was freed below memory that is in use; over all layers that is as much as the weights."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
