"""Blockwise compression: few-bit integers with a shift for each small block, without training or data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from instar.anatomy.linear import Linear
from instar.compression import arithmetic, compressor, whole, whole_attention
from instar.compression.arithmetic import Backend
from instar.compression.blocks import BlockFormat, Scale
from instar.compression.compressor import Compressor, Work
from instar.errors import ShapeError, UnknownNameError

Activations = Literal["none", "inputs", "results", "all"]
_OVERRIDABLE = ("bits", "block", "rows", "scale", "activations", "activation_bits")


class Blockwise(Compressor):
    """q = clamp(round(x · 2^e)), x̂ = q · 2^−e, one e for each block: of weights once, of activations while the model runs.

    Args:
        bits: of weights, 3 to 8 (16 to see that nothing else is lost). block, rows: of a weight's tile, `block` along its inputs
            and `rows` along its outputs; None takes 64 rows for 8 bits and 1 for fewer.
        scale: see `BlockFormat`.
        activations: how much of what flows through the model is in blocks of 1 × `block`. none: weights only. inputs: the inputs
            of linear layers, everything else in float. results: their products as integers and their results too. all: norms,
            activations and attention as well, so that only sums of the residual stream are left in float.
        activation_bits: of activations.
        backend: of results and all: simulate (float64) or integer; both give the same bits.
        keep: regular expressions over names of layers that stay as they are.
        overrides: regular expression -> arguments that replace these for the layers of those names; the first that fits counts.

    Time: one maximum and one shift a block. Memory: bits / 32 + 8 / (32 · rows · block) of float32.
    Source: arXiv 2304.01483; only its abstract is public, see the card's deviations.
    """

    method: ClassVar[str] = "blockwise"

    def __init__(
        self,
        *,
        bits: int = 8,
        block: int = 64,
        rows: int | None = None,
        scale: Scale = "power",
        activations: Activations = "inputs",
        activation_bits: int = 8,
        backend: Backend = "simulate",
        keep: Sequence[str] = (),
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        rows = (64 if bits >= 8 else 1) if rows is None else rows
        if bits not in (3, 4, 5, 6, 7, 8, 16) or activation_bits not in (4, 5, 6, 7, 8, 16) or min(block, rows) < 1:
            raise ShapeError(
                "Blockwise expects bits of 3 to 8 or 16, activation_bits of 4 to 8 or 16, block and rows of 1 or more; received "
                f"bits={bits}, activation_bits={activation_bits}, block={block}, rows={rows}."
            )
        if activations not in get_args(Activations):
            raise UnknownNameError.among("level of activations", activations, get_args(Activations))
        self.bits, self.block, self.rows, self.scale = bits, block, rows, scale
        if activations in ("results", "all") and scale.startswith("float"):
            raise ShapeError(
                f"activations={activations} is arithmetic by shifts: it needs a power of two, received scale={scale}."
            )
        arithmetic.of(backend)
        self.activations, self.activation_bits, self.backend = activations, activation_bits, backend
        self.scale_bytes = {"float16": 2, "float32": 4}.get(scale, 1)
        self.keep = compressor.checked_keep(keep)
        self.overrides = {name: dict(changed) for name, changed in (overrides or {}).items()}
        compressor.checked_keep(self.overrides)
        BlockFormat(bits, rows, block, scale)
        for changed in self.overrides.values():
            self._with(changed)

    def at(self, name: str) -> Blockwise:
        """The configuration for the layer of this name."""
        return next((self._with(c) for pattern, c in self.overrides.items() if re.fullmatch(pattern, name)), self)

    @property
    def weights(self) -> BlockFormat:
        """The format of weights."""
        return BlockFormat(self.bits, self.rows, self.block, self.scale)

    @property
    def inputs(self) -> BlockFormat | None:
        """The format of a linear layer's inputs, whose blocks are those of its weight."""
        scale: Scale = "float32" if self.scale.startswith("float") else "power"
        return None if self.activations == "none" else BlockFormat(self.activation_bits, 1, self.block, scale)

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        own = self.at(name)
        inputs = own.inputs
        if inputs is None or own.activations == "inputs" or isinstance(module, nn.Embedding):
            return compressor.stored(name, module, own.weights, work, inputs)
        if (function := whole.function_of(module)) is not None:
            return whole.BlockActivation(function, inputs, self.backend)
        if (norm := whole.norm_of(module)) is not None:
            weight, bias, eps, centred = norm
            parts = compressor.checked(name, lambda: whole.BlockNorm.parts_of(weight, bias, own.block))
            return whole.BlockNorm(parts, len(weight), eps, centred, inputs, self.backend)
        parts, shape = compressor.encoded(name, module, own.weights, work)
        return whole.BlockLinear(own.weights, parts, shape, Linear(name, module).bias, inputs, self.backend)

    def takes(self, module: nn.Module) -> bool:
        if self.activations == "all" and (whole.function_of(module) or whole.norm_of(module)):
            return True
        return super().takes(module)

    def finish(self, model: nn.Module) -> None:
        """Attention of a model of transformers is a function, no layer."""
        if self.activations == "all":
            whole_attention.install(model, self.backend)

    def _with(self, changed: Mapping[str, Any]) -> Blockwise:
        for key in changed:
            if key not in _OVERRIDABLE:
                raise UnknownNameError.among("argument of an override", key, _OVERRIDABLE)
        own = {key: getattr(self, key) for key in _OVERRIDABLE}
        if "bits" in changed and "rows" not in changed:
            own["rows"] = None
        return Blockwise(**{**own, **changed})
