"""Simulated post-training quantisation, weights and activations for each whole tensor: the protocol that outliers break.

Bondarenko et al. 2023 (arXiv 2306.12929): x̂ = s (clamp(round(x / s) + z, 0, 2^b − 1) − z), activations asymmetric with ranges
found beforehand, weights symmetric.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from instar.compression import observing
from instar.compression.blocks import BlockFormat
from instar.errors import DataError, ShapeError

Range = tuple[float, float]
Ranges = dict[str, Range]
"""The range of each activation, by "module.input" and "module.output"."""
MOMENTUM = 0.9


def affine(x: Tensor, low: Tensor | float, high: Tensor | float, bits: int = 8) -> Tensor:
    """x on the grid of 2^b steps from low to high, both broadcast to x; the range is widened to hold 0, which stays 0 exactly.

    Idempotent; the error is at most s / 2 inside the range, and what lies outside is clipped.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    low, high = (torch.as_tensor(value, dtype=wide.dtype, device=x.device) for value in (low, high))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    top = 2**bits - 1
    step = ((high - low) / top).clamp(min=1e-30)
    zero = torch.round(-low / step)
    return (step * (torch.clamp(torch.round(wide / step) + zero, 0, top) - zero)).to(x.dtype)


def bounds(x: Tensor, percentile: float = 100.0) -> Range:
    """The smallest and largest value, or the values that leave (100 − percentile) % beyond them on either side.

    Raises DataError for NaN or infinity.
    """
    values = x.detach().float().flatten()
    if not bool(torch.isfinite(values).all()):
        raise DataError("NaN or infinity has no range.")
    if percentile == 100.0:
        return float(values.min()), float(values.max())
    beyond = min(len(values) - 1, round((1 - percentile / 100) * len(values)))
    found = values.sort().values
    return float(found[beyond]), float(found[-1 - beyond])


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any], *, percentile: float = 100.0, momentum: float = MOMENTUM) -> Ranges:
    """The running range of every activation that `quantised` rounds: r ← momentum · r + (1 − momentum) · the batch's.

    batches: what the model is called with, keyword arguments where it is a mapping. percentile: of the values of a batch; 100 is
    min-max. Raises ShapeError, DataError for no batches.
    """
    if not 50 < percentile <= 100 or not 0 <= momentum < 1:
        raise ShapeError(f"percentile in (50, 100] and momentum in [0, 1) expected; received {percentile} and {momentum}.")
    found: Ranges = {}

    def see(name: str, x: Tensor) -> Tensor:
        low, high = bounds(x, percentile)
        old = found.get(name, (low, high))
        found[name] = (momentum * old[0] + (1 - momentum) * low, momentum * old[1] + (1 - momentum) * high)
        return x

    with observing.between(model, see):
        for batch in batches:
            observing.call(model, batch)
    if not found:
        raise DataError("Calibration needs at least one batch that reaches a linear layer, an embedding or a norm.")
    return found


@contextlib.contextmanager
def quantised(model: nn.Module, ranges: Ranges | None, *, weight_bits: int = 8, activation_bits: int = 8) -> Iterator[None]:
    """The model as it computes in few bits; afterwards its weights are what they were, to the bit.

    ranges: of `calibrate`, one static scale for each tensor. None gives every token a range of its own, found when it comes.

    Rounded are the weights of linear layers, embeddings and norms (symmetric, one scale each), inputs and outputs of linear
    layers (so what attention reads and what enters the output projections too), outputs of embeddings, inputs of norms (the
    residual sums) and their outputs. Not rounded: scores and weights of attention, gates and sinks, and what functions compute
    between modules, a head that is the embedding among them.
    Raises DataError for an activation without a range.
    """
    symmetric = BlockFormat(weight_bits, 0, 0, "float32")
    kept: dict[nn.Parameter, Tensor] = {}

    def see(name: str, x: Tensor) -> Tensor:
        if ranges is None:
            return affine(x, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), activation_bits)
        if name not in ranges:
            raise DataError(f"{name} has no range: calibrate the model on data that reach it.")
        return affine(x, *ranges[name], activation_bits)

    try:
        with torch.no_grad():
            for module in model.modules():
                weight = getattr(module, "weight", None)
                if observing.kind(module) and isinstance(weight, nn.Parameter) and weight not in kept:
                    kept[weight] = weight.detach().clone()
                    flat = weight.detach().reshape(-1, weight.shape[-1])
                    weight.copy_(symmetric.quantise(flat).dequantise().view(weight.shape))
        with observing.between(model, see):
            yield
    finally:
        with torch.no_grad():
            for weight, values in kept.items():
                weight.copy_(values)
