"""Smaller formats of a model's weights and activations.

>>> from instar.compression import quantize_, save, load
>>> from instar.compression.blockwise import Blockwise
>>> receipt = quantize_(model, Blockwise(bits=4, block=32), filter_fn)                                # doctest: +SKIP
>>> save(model, folder, steps=[receipt]); model = load(folder); receipt.undo()                        # doctest: +SKIP
"""

from __future__ import annotations

from instar.compression.compressor import Compressor, pipeline, quantize_
from instar.compression.saved import load, save

__all__ = ["Compressor", "load", "pipeline", "quantize_", "save"]
