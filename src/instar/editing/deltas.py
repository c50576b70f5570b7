"""Changes of weights as a file of their own: taken from a receipt, added to a model, taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from instar.errors import EditError
from instar.models import checkpoint
from instar.receipt import Receipt, updating

Deltas = Mapping[str, Tensor]
"""Name of a parameter as the model calls it -> what is added to it, as it is stored."""


def of(receipt: Receipt) -> dict[str, Tensor]:
    """What an edit added, in float32. Raises EditError for an update that changed shapes, ReceiptError as `Receipt.values`."""
    before, after = receipt.values("before"), receipt.values("after")
    if receipt.facts.structural or before.keys() != after.keys():
        raise EditError(f"Receipt {receipt.id} changed more than the values of weights; it has no deltas.")
    return {name: (after[name].double() - before[name].double()).float() for name in after}


def save(path: str | Path, deltas: Deltas) -> None:
    """Write them as safetensors, at once. Raises OutputError."""
    checkpoint.write(Path(path), dict(deltas), {"format": "instar-deltas-1"})


def load(path: str | Path) -> dict[str, Tensor]:
    """Raises CheckpointError."""
    return checkpoint.read(Path(path))[0]


def add(model: nn.Module, deltas: Deltas, factor: float = 1.0) -> Receipt:
    """θ ← θ + factor · Δ; −1 takes an edit out, up to rounding (its receipt does so to the bit).

    Raises EditError, with the model untouched, for names and shapes that the model has not, and for values that are not finite.
    """
    known = dict(model.named_parameters())
    wrong = [name for name, delta in deltas.items() if name not in known or known[name].shape != delta.shape]
    if wrong:
        raise EditError(f"These deltas are of another model: it has no {wrong[0]} of shape {list(deltas[wrong[0]].shape)}.")
    said = {"factor": factor, "tensors": sorted(deltas)}
    with updating(model, method="deltas", settings=said, changes=list(deltas)) as update, torch.no_grad():
        for name, delta in deltas.items():
            weight = known[name]
            result = (weight.double() + factor * delta.to(weight.device).double()).to(weight.dtype)
            if not bool(result.isfinite().all()):
                raise EditError(f"{name} would not be finite.")
            weight.copy_(result)
    return update.receipt
