"""Every part of a transformer in block integers: linear layers, norms, activations and attention.

Between layers a value is a float32 that an integer and a shift hold exactly, so that each layer fits where the old one was; sums
of the residual stream stay in float32, since one token's values of 25,000 would flush the others in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instar.compression import arithmetic
from instar.compression.arithmetic import Backend
from instar.compression.blocks import BlockFormat, Blocks, exponents, power_of_two
from instar.compression.stored import StoredLinear, WeightFormat, through
from instar.errors import UnknownNameError

_FRACTION = 12
"""Bits after the point of a normalised value."""
_SAME = 0.02
"""How far apart two norms may be that are one, relative: more than what bfloat16 rounds."""
FUNCTIONS = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "relu": nn.ReLU(),
    "tanh": nn.Tanh(),
}
_NAMES = {
    **{"GELUActivation": "gelu", "NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "FastGELUActivation": "gelu_tanh"},
    **{"SiLU": "silu", "SiLUActivation": "silu", "ReLU": "relu", "Tanh": "tanh"},
}


class BlockLinear(StoredLinear):
    """y = requantised(Σ_k p_k 2^−(e_x,k + e_W,k) + b): the products of integers, aligned, in blocks of 8 bits again.

    The bias is rounded at the shift of the sum. backend: see `arithmetic`; both give the same bits.
    """

    def __init__(
        self,
        format: WeightFormat,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        bias: nn.Parameter | None,
        inputs: BlockFormat,
        backend: Backend,
    ) -> None:
        super().__init__(format, parts, shape, bias, inputs)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        assert self.inputs is not None
        assert isinstance(self.format, BlockFormat)
        flat = x.reshape(-1, self.in_features)
        if not len(flat):
            return x.new_empty(*x.shape[:-1], self.out_features)
        how = arithmetic.of(self.backend)
        bias = None if self.bias is None else self.bias.detach()
        v, n = arithmetic.matmul(how, self.inputs.quantise(flat), self.format.unpack(self.parts, self.shape), bias)
        found = how.requantise(v, n, self.inputs).dequantise().to(x.dtype).view(*x.shape[:-1], self.out_features)
        # The gradient is that of the layer with rounded inputs.
        return through(super().forward(x), found) if x.requires_grad and torch.is_grad_enabled() else found

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "backend": self.backend}

    @classmethod
    def blank(  # type: ignore[override]
        cls, format: WeightFormat, shape: tuple[int, int], bias: nn.Parameter | None, inputs: BlockFormat, backend: Backend
    ) -> BlockLinear:
        return cls(format, format.blank(shape), shape, bias, inputs, backend)


class BlockActivation(nn.Module):
    """f(x) by table: x in blocks q · 2^−e, and for each e a table of f(q · 2^−e) in integers with one exponent.

    The simulation computes f in float64 and rounds; a table is that, for every q. Tables are made when an exponent is met first.
    """

    def __init__(self, function: str, format: BlockFormat, backend: Backend) -> None:
        super().__init__()
        self.function, self.format, self.backend = function, format, backend
        self._tables: dict[int, tuple[Tensor, int]] = {}

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if not flat.numel():
            return x
        made = self.format.quantise(flat)
        known, which = made.scale.long().unique(return_inverse=True)
        lines = [self.table(int(e)) for e in known]
        out = torch.tensor([e for _, e in lines], device=x.device)[which]
        if self.backend == "integer":
            line = self.format.spread(torch.ones_like(flat, dtype=torch.long), which)
            codes = torch.stack([codes for codes, _ in lines]).to(x.device)[line, made.q.long() + 2 ** (self.format.bits - 1)]
            values = codes.float()
        else:
            exact = FUNCTIONS[self.function](made.dequantise(torch.float64))
            values = torch.round(self.format.spread(exact, power_of_two(out))).float()
        found = self.format.spread(values, power_of_two(-out, torch.float32)).to(x.dtype).view(x.shape)
        return through(FUNCTIONS[self.function](x), found) if x.requires_grad and torch.is_grad_enabled() else found

    def table(self, e: int) -> tuple[Tensor, int]:
        """(f of every q as integers, their exponent)."""
        if e not in self._tables:
            bits = self.format.bits
            q = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float64)
            values = FUNCTIONS[self.function](q * power_of_two(torch.tensor(-e)))
            out = int(exponents(values.abs().amax()[None], bits))
            self._tables[e] = (torch.round(values * power_of_two(torch.tensor(out))).long(), out)
        return self._tables[e]

    def spec(self) -> dict[str, Any]:
        """What `blank` needs."""
        return {"function": self.function, "format": self.format.settings(), "backend": self.backend}

    @classmethod
    def blank(cls, function: str, format: BlockFormat, backend: Backend) -> BlockActivation:
        if function not in FUNCTIONS:
            raise UnknownNameError.among("activation", function, FUNCTIONS)
        return cls(function, format, backend)


class BlockNorm(nn.Module):
    """LayerNorm and RMSNorm in integers: z = c · 2^12 / ⌊√V⌋, y = requantised(z γ + β).

    x is one row of up to 16 bits with one exponent, so that its sums are exact: c = N q − Σ q and V = Σ c² / N for LayerNorm,
    c = N q and V = N Σ q² for RMSNorm, plus ε in the same unit. γ and β are in blocks of 8 bits.
    """

    def __init__(
        self, parts: Mapping[str, Tensor], width: int, eps: float, centred: bool, format: BlockFormat, backend: Backend
    ) -> None:
        super().__init__()
        self.width, self.eps, self.centred, self.format, self.backend = width, eps, centred, format, backend
        self.vectors = BlockFormat(8, 1, format.block)
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.rows = BlockFormat(min(16, (53 - 2 * (width - 1).bit_length()) // 2), 1, 0)
        self.finest = min(127, math.floor((52 - math.log2(eps * width**2)) / 2)) if eps > 0 else 127
        """The largest exponent of a row at which ε, in the unit of V, is below 2^52 still."""

    @staticmethod
    def parts_of(weight: Tensor, bias: Tensor | None, block: int) -> dict[str, Tensor]:
        """γ and β [N] as blocks."""
        vectors = BlockFormat(8, 1, block)
        found = {f"weight_{name}": tensor for name, tensor in vectors.encode(weight.detach()[None]).items()}
        if bias is not None:
            found |= {f"bias_{name}": tensor for name, tensor in vectors.encode(bias.detach()[None]).items()}
        return found

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.width)
        if not len(flat):
            return x
        how = arithmetic.of(self.backend)
        made = self.rows.quantise(flat)
        # Small rows are rounded coarser than they could be: with a smaller ε than it is they would come out too large.
        e, N = made.scale.long().clamp(max=self.finest), self.width
        coarse = torch.round(flat.detach() * power_of_two(e, torch.float32))
        q = how.number(torch.where(e < made.scale, coarse, made.q))
        if self.centred:
            total = q.sum(1, keepdim=True)
            c, V = N * q - total, N * (q * q).sum(1, keepdim=True) - total * total
        else:
            c, V = N * q, N * (q * q).sum(1, keepdim=True)
        small = torch.round(self.eps * N * N * power_of_two(2 * e))
        s = how.root(V + how.number(small)).clamp(min=1)
        z = how.divide(c * 2**_FRACTION, s)
        gamma, eg = self._vector("weight")
        n = torch.broadcast_to(_FRACTION + eg, z.shape)
        v = z * how.number(gamma)
        if hasattr(self, "bias_codes"):
            beta, eb = self._vector("bias")
            v = v + how.shift(torch.broadcast_to(how.number(beta), z.shape).contiguous(), n - eb)
        found = how.requantise(v, n, self.format).dequantise().to(x.dtype).view(x.shape)
        return through(x, found) if x.requires_grad and torch.is_grad_enabled() else found

    def plain(self) -> dict[str, Tensor]:
        """γ and β in float32."""
        names = ["weight", "bias"] if hasattr(self, "bias_codes") else ["weight"]
        return {name: (q * power_of_two(-e, torch.float32))[0] for name in names for q, e in [self._vector(name)]}

    def _vector(self, name: str) -> tuple[Tensor, Tensor]:
        """(integers [1, N], exponents [1, N])."""
        parts = {"codes": getattr(self, f"{name}_codes"), "scale": getattr(self, f"{name}_scale")}
        made = self.vectors.unpack(parts, (1, self.width))
        return made.q, self.vectors.spread(torch.ones(1, self.width, dtype=torch.long), made.scale.long())

    def spec(self) -> dict[str, Any]:
        """What `blank` needs."""
        kept = {"width": self.width, "eps": self.eps, "centred": self.centred, "bias": hasattr(self, "bias_codes")}
        return {**kept, "format": self.format.settings(), "backend": self.backend}

    @classmethod
    def blank(cls, width: int, eps: float, centred: bool, bias: bool, format: BlockFormat, backend: Backend) -> BlockNorm:
        vectors = BlockFormat(8, 1, format.block)
        parts = {f"weight_{name}": tensor for name, tensor in vectors.blank((1, width)).items()}
        if bias:
            parts |= {f"bias_{name}": tensor for name, tensor in vectors.blank((1, width)).items()}
        return cls(parts, width, eps, centred, format, backend)


def softmax(scores: Tensor, allowed: Tensor | None, backend: Backend) -> Tensor:
    """Integers p [..., T], 0 to 255, softmax ≈ p / 256: 8-bit scores, a table of exp in 16 bits, an integer division.

    scores: float; each row gets one exponent. allowed: bool, False where p is exactly 0. A row that allows nothing is 0.
    """
    how = arithmetic.of(backend)
    kept = scores if allowed is None else scores.masked_fill(~allowed, 0)
    made = arithmetic.rows_of(kept.contiguous(), BlockFormat(8, 1, 0))
    q = made.q.long()
    top = q if allowed is None else q.masked_fill(~allowed, -1000)
    below = (top.amax(-1, keepdim=True) - q).clamp(0, 255)
    t = torch.round(65535 * torch.exp(-below.double() * power_of_two(-made.scale.long())))
    if allowed is not None:
        t = t * allowed
    t = how.number(t)
    return how.divide(t * 256, t.sum(-1, keepdim=True).clamp(min=1)).clamp(max=255)


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float, backend: Backend) -> Tensor:
    """softmax(q kᵀ · scaling) v with every product in block integers. [B, H, T, d] each -> [B, T, H, d].

    The scale is part of the scores before they are rounded. A value has one exponent for each token and head, which goes into the
    probabilities before their row is rounded to 16 bits: blocks over several tokens would let later ones, and padding, reach
    earlier ones.
    """
    how = arithmetic.of(backend)
    narrow, token, row = BlockFormat(8, 1, 64), BlockFormat(8, 1, 0), BlockFormat(16, 1, 0)
    v, n = arithmetic.matmul(how, arithmetic.rows_of(query, narrow), arithmetic.rows_of(key.contiguous(), narrow))
    p = softmax(v.double() * power_of_two(-n) * scaling, allowed, backend)
    values = arithmetic.rows_of(value.contiguous(), token)
    probabilities = arithmetic.rows_of(p.double() * power_of_two(-8 - values.scale.long()).transpose(-1, -2), row)
    units = values.scale.new_zeros(*values.q.shape[:-2], values.q.shape[-1], 1)
    v, n = arithmetic.matmul(how, probabilities, Blocks(values.q.transpose(-1, -2).contiguous(), units, token))
    shape = v.shape
    found = how.requantise(v.reshape(-1, shape[-1]), n.reshape(-1, shape[-1]), narrow)
    return found.dequantise().view(shape).transpose(1, 2).contiguous()


def function_of(module: nn.Module) -> str | None:
    """The name in `FUNCTIONS` of an activation; None for a module that is none of them."""
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return _NAMES.get(type(module).__name__)


def norm_of(module: nn.Module) -> tuple[Tensor, Tensor | None, float, bool] | None:
    """(γ, β, ε, centred) of a LayerNorm or RMSNorm over one axis; None for other modules and for norms that do something else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not type(module).__name__.endswith(("LayerNorm", "RMSNorm")):
        return None
    given = getattr(module, "bias", None)
    bias = given if isinstance(given, Tensor) else None
    eps = next((v for key in ("eps", "variance_epsilon") if isinstance(v := getattr(module, key, None), float)), 1e-6)
    # T5's "LayerNorm" takes no mean away; it has no shift either.
    centred = isinstance(module, nn.LayerNorm) or bias is not None
    return (weight, bias, eps, centred) if _does(module, weight, bias, eps, centred) else None


@torch.no_grad()
def _does(module: nn.Module, weight: Tensor, bias: Tensor | None, eps: float, centred: bool) -> bool:
    """Whether a norm is what its attributes say: some multiply by 1 + weight, take a mean away, or have channels elsewhere."""
    if weight.is_meta or not bool(torch.isfinite(weight).all()):
        return True  # nothing can be seen; who encodes it says what is wrong
    x = (2 + torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))).to(weight)
    try:
        found = module.forward(x)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it is called otherwise
    rows = x.double()
    rows = rows - rows.mean(1, keepdim=True) if centred else rows
    exact = rows * (rows.square().mean(1, keepdim=True) + eps).rsqrt() * weight.double() + (0 if bias is None else bias.double())
    return isinstance(found, Tensor) and found.shape == x.shape and bool((found - exact).norm() <= _SAME * exact.norm())
