"""Compressed models as GGUF files: for any tool that reads these, and, of Llamas, for llama.cpp to run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instar import extras
from instar.compression import gguf_llama
from instar.compression.blocks import BlockFormat
from instar.compression.gguf_blocks import BLOCK, GgufFormat
from instar.compression.gguf_llama import Place
from instar.compression.stored import Stored
from instar.errors import OutputError
from instar.receipts.fingerprint import named


def write(model: nn.Module, path: str | Path, *, tokenizer: Any = None) -> Path:
    """Every tensor of a model: stored weights in their GGUF format where they have one, others as F32.

    8-bit blocks of 1 × 32 with a power of two become Q8_0 exactly (2^−e is a float16 for −15 ≤ e ≤ 24).

    Args:
        tokenizer: of `transformers`. With it the file is one that llama.cpp runs (see `gguf_llama` for the models that it takes);
            without, names are the model's own, and whatever reads GGUF files reads the tensors.

    Raises OutputError, MissingExtraError; with a tokenizer ModelError.
    """
    gguf = extras.require("gguf", "models")
    target = Path(path)
    place = Place() if tokenizer is None else gguf_llama.place(model, tokenizer)
    stored = {name: module for name, module in model.named_modules() if isinstance(module, Stored)}
    inside = {f"{name}.{part}" for name, module in stored.items() for part in module.names}
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            writer = gguf.GGUFWriter(Path(folder) / "file", place.architecture)
            place.describe(writer)
            for name, module in stored.items():
                kind, codes = encoded(module)
                raw = None if kind is None else getattr(gguf.GGMLQuantizationType, kind)
                if (stands := place.tensor(f"{name}.weight", codes)) is not None:
                    writer.add_tensor(*stands, raw_dtype=raw)
            for name, (tensor, _) in named(model).items():
                if name in inside or not tensor.numel() or not tensor.is_floating_point():
                    continue
                if (stands := place.tensor(name, _numpy(tensor.detach().float()))) is not None:
                    writer.add_tensor(*stands)
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
