"""C = E[k kᵀ], the uncentred second moment of what a linear layer reads: the directions that an edit must spare."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instar import files
from instar.data import datasets
from instar.editing.layout import Layer, Part
from instar.editing.rows import tokens as tokenised
from instar.editing.running import call, on_input, on_output, stop, until_stopped
from instar.errors import CheckpointError, EditError, ModelError, OutputError
from instar.models import checkpoint
from instar.receipt import fingerprint

Moments = dict[tuple[int, Part], Tensor]
"""(layer, ffn or attention) -> C, float64 [inputs, inputs]."""
_LENGTH, _BATCH = 128, 8
_WORTH_KEEPING = 1e10
"""Tokens times parameters, from which on C is kept on disk: less is done again in a second."""
RIDGE = 1e-6
"""Of the mean of the diagonal, added to it: a unit that never fires leaves C singular."""


def default_texts() -> list[str]:
    """English text that ships inside Python."""
    import pydoc_data.topics

    return [" ".join(text.split()) for _, text in sorted(pydoc_data.topics.topics.items())]


def gather(
    model: nn.Module,
    tokenizer: Any,
    layers: Sequence[Layer],
    parts: Sequence[Part] = ("ffn",),
    *,
    texts: Iterable[str] | None = None,
    tokens: int | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """C of some layers, over the tokens of texts, each with what stands before it in windows of 128 tokens.

    Args:
        texts: any; by default English that ships inside Python. An iterator is read only as far as needed.
        tokens: so many are enough; by default four times the width of the widest layer (arXiv 2506.04226: that suffices).
        cache: whether it is kept for this model (its fingerprint), these layers and these tokens in the user's cache,
            where it took more than a second or so.
        progress: called with (tokens done, tokens).

    Sums are float64. O(tokens · (forward + inputs²)). Raises EditError where there are fewer tokens than the widest layer has
    inputs, ModelError for values that are not finite.
    """
    linears = {(layer.index, part): layer.linear(part) for layer in layers for part in parts}
    widest = max(linear.inputs for linear in linears.values())
    tokens = 4 * widest if tokens is None else tokens
    length = min(_LENGTH, getattr(getattr(model, "config", None), "max_position_embeddings", None) or _LENGTH)
    windows = _windows(tokenizer, default_texts() if texts is None else texts, tokens, length)
    count = sum(map(len, windows))
    if count < widest:
        raise EditError(
            f"The texts have {count} tokens; C of a layer with {widest} inputs needs {widest} or more. Give more texts."
        )
    dear = count * sum(p.numel() for p in model.parameters()) > _WORTH_KEEPING
    path = _path(model, list(linears), windows) if cache and dear else None
    if path is not None and (kept := _kept(path, list(linears))) is not None:
        return kept
    device = next(model.parameters()).device
    sums = {key: torch.zeros(part.inputs, part.inputs, dtype=torch.float64, device=device) for key, part in linears.items()}
    windows.sort(key=len)
    done = 0
    with torch.no_grad(), contextlib.ExitStack() as stack:
        mask = torch.empty(0)

        def add(key: tuple[int, Part]) -> Callable[[Tensor], None]:
            def take(value: Tensor) -> None:
                k = value[mask.bool()].double()
                sums[key].addmm_(k.T, k)

            return take

        for key, linear in linears.items():
            stack.enter_context(on_input(linear.module, add(key)))
        last = max(layers, key=lambda layer: layer.index)
        stack.enter_context(on_output(last.block, stop))
        for start in range(0, len(windows), _BATCH):
            part = windows[start : start + _BATCH]
            width = max(map(len, part))
            ids = torch.tensor([w + [w[0]] * (width - len(w)) for w in part], device=device)
            mask = torch.tensor([[1] * len(w) + [0] * (width - len(w)) for w in part], device=device)
            with until_stopped():
                call(model, ids, mask)
            done += sum(map(len, part))
            if progress is not None:
                progress(done, count)
    found = {key: total / count for key, total in sums.items()}
    if broken := [key for key, value in found.items() if not bool(value.isfinite().all())]:
        raise ModelError(
            f"Layer {broken[0][0]} of {type(model).__name__} reads values that are not finite: its weights are broken."
        )
    for value in found.values():
        value.diagonal().add_(RIDGE * float(value.diagonal().mean()))
    if path is not None:
        with contextlib.suppress(OutputError):  # a cache that cannot be written costs only time
            files.folder(path.parent)
            checkpoint.write(path, {_name(key): value for key, value in found.items()})
    return found


def _windows(tokenizer: Any, texts: Iterable[str], tokens: int, length: int) -> list[list[int]]:
    found: list[list[int]] = []
    total = 0
    for text in texts:
        ids = tokenised(tokenizer, text)[0] if text.strip() else []
        for start in range(0, len(ids), length):
            window = ids[start : start + min(length, tokens - total)]
            found.append(window)
            total += len(window)
            if total >= tokens:
                return found
    return found


def _path(model: nn.Module, keys: Sequence[tuple[int, Part]], windows: Sequence[Sequence[int]]) -> Path:
    said = f"1/{fingerprint(model)}/{keys}/{windows}"
    return datasets.cache() / "editing" / f"{hashlib.sha256(said.encode()).hexdigest()}.safetensors"


def _kept(path: Path, keys: Sequence[tuple[int, Part]]) -> Moments | None:
    try:
        found, _ = checkpoint.read(path)
        return {key: found[_name(key)] for key in keys}
    except (CheckpointError, KeyError):
        return None


def _name(key: tuple[int, Part]) -> str:
    return f"{key[0]}.{key[1]}"
