"""Gated attention: a gate for each head and token, so that a head can do nothing without a sink.

Bondarenko, Nagel, Blankevoort 2023, "Quantizable Transformers" (arXiv 2306.12929).
"""

from __future__ import annotations

from torch import Tensor

from instar.mixers.head_gate import Form, HeadGate
from instar.mixers.softmax import Softmax


class GatedSoftmax(Softmax):
    r"""Softmax attention whose head outputs are multiplied by σ(G_h(x)) before the output projection.

    Args:
        width, heads, kv_heads, rope, rope_base, bias: as of `Softmax`.
        gate: the form of G; start: π, the gate before training; hidden: of the mlp form; fine_tuning: for a trained attention,
            whose weights `load_state_dict(…, strict=False)` takes over. See `HeadGate`.

    Shapes, state and kernels as of `Softmax`: the gate comes after SDPA, and one token needs its own input alone. Raises
    ShapeError. Time beside softmax: O(T D) for `linear`, O(T D H) for `all_heads`, O(T D²) for `elementwise`.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        gate: Form = "linear",
        start: float = 0.5,
        hidden: int = 4,
        fine_tuning: bool = False,
        kv_heads: int = 0,
        rope: bool = True,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads=heads, kv_heads=kv_heads, rope=rope, rope_base=rope_base, bias=bias)
        self.gate = HeadGate(width, heads, form=gate, start=start, hidden=hidden, fine_tuning=fine_tuning)

    def emit(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.gate(x)
