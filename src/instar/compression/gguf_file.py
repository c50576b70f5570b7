"""Compressed models as GGUF files, for tools that read these."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instar import extras
from instar.compression.blocks import BlockFormat
from instar.compression.gguf_blocks import BLOCK, GgufFormat
from instar.compression.stored import Stored
from instar.errors import OutputError
from instar.receipts.fingerprint import named


def write(model: nn.Module, path: str | Path, *, architecture: str = "instar") -> Path:
    """Every tensor of a model under its own name: stored weights in their GGUF format where they have one, others as F32.

    8-bit blocks of 1 × 32 with a power of two become Q8_0 exactly (2^−e is a float16 for −15 ≤ e ≤ 24). Names and metadata are
    the model's own, not llama.cpp's: any GGUF reader opens the file, and llama.cpp needs its names and a tokenizer besides.
    Raises OutputError, MissingExtraError.
    """
    gguf = extras.require("gguf", "models")
    target = Path(path)
    stored = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Stored)}
    inside = {f"{name.removesuffix('weight')}{part}" for name, module in stored.items() for part in module.names}
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            writer = gguf.GGUFWriter(Path(folder) / "file", architecture)
            for name, module in stored.items():
                kind, codes = encoded(module)
                raw = None if kind is None else getattr(gguf.GGMLQuantizationType, kind)
                writer.add_tensor(name, codes, raw_dtype=raw)
            for name, (tensor, _) in named(model).items():
                if name not in inside and tensor.numel() and tensor.is_floating_point():
                    writer.add_tensor(name, _numpy(tensor.detach().float()))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            (Path(folder) / "file").replace(target)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {error.strerror}. What stood there before is unchanged.") from error
    return target


def encoded(module: Stored) -> tuple[str | None, np.ndarray[Any, Any]]:
    """(name of the GGUF type, bytes [out, n]) of a stored weight; (None, float32 values) where it has none."""
    if isinstance(module.format, GgufFormat):
        return module.format.type, _numpy(module.parts["codes"])
    format, shape = module.format, module.shape
    if isinstance(format, BlockFormat) and (format.bits, format.rows, format.block) == (8, 1, BLOCK) and shape[1] % BLOCK == 0:
        blocks = format.unpack(module.parts, shape)
        half = blocks.steps().half()
        if torch.equal(half.float(), blocks.steps()):
            d = _numpy(half.reshape(-1, 1)).view(np.uint8)
            return "Q8_0", np.concatenate([d, _numpy(blocks.q.reshape(-1, BLOCK)).view(np.uint8)], 1).reshape(shape[0], -1)
    return None, _numpy(module.weight)


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
