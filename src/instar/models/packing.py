"""A tree of tensors and plain values, such as an optimiser's state, as named tensors and a text, for a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from instar.errors import CheckpointError

_PLAIN = (bool, int, float, str)


def pack(tree: Any, prefix: str) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, each below `prefix`, and JSON that says where each belongs. Raises CheckpointError for other things."""
    tensors: dict[str, Tensor] = {}

    def encoded(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{prefix}{len(tensors)}"
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[encoded(key), encoded(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):  # a torch.Size comes back as a plain tuple
            return {"list" if isinstance(value, list) else "tuple": [encoded(item) for item in value]}
        if value is None or isinstance(value, _PLAIN):
            return value
        raise CheckpointError(f"A {type(value).__name__} cannot be saved: tensors, numbers, texts, lists and tables can.")

    return tensors, json.dumps(encoded(tree))


def unpack(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """The tree of `pack`. Raises CheckpointError for a text that is none of it, or speaks of tensors that are not there."""

    def decoded(value: Any) -> Any:
        if not isinstance(value, dict):
            if value is None or isinstance(value, _PLAIN):
                return value
            raise CheckpointError("The state in this file is damaged: it holds a bare list.")
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {decoded(key): decoded(item) for key, item in content}
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(decoded(item) for item in content)
        raise CheckpointError(f"The state in this file is damaged: it speaks of a '{kind}'.")

    try:
        return decoded(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"The state in this file is damaged ({error}).") from error
