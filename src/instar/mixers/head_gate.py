"""Gates of attention heads: σ(G(x)), from the attention layer's own input."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError

Form = Literal["linear", "mlp", "all_heads", "elementwise", "constant"]
FORMS: tuple[Form, ...] = ("linear", "mlp", "all_heads", "elementwise", "constant")


class HeadGate(nn.Module):
    r"""gate_h(x) = σ(G_h(x)) for every token, x [B, T, D] -> [B, T, H, 1] (elementwise: [B, T, H, K]).

    Args:
        width, heads: D and H; head h owns the slice x_h of K = D / H channels.
        form: of G. linear: w_h·x_h + b_h, H (K + 1) parameters. mlp: K -> hidden -> ReLU -> 1 on x_h, H (hidden (K + 2) + 1).
            all_heads: W x + b, W [H, D], H (D + 1). elementwise: W x + b, W [H·K, D], one gate for each channel (Qiu et al. 2025,
            arXiv 2505.06708). constant: b_h, whatever the token (the "unconditional" gate), H.
        start: π, the gate before training: the last bias is logit(π).
        hidden: of mlp.
        fine_tuning: for a trained attention: last weights from N(0, 0.01²), and the gate times 1/π, so that it starts at 1.

    Raises ShapeError. Source: Bondarenko et al. 2023 (arXiv 2306.12929), which averages logits over tokens in one more form: that
    looks ahead, and is not here.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        form: Form = "linear",
        start: float = 0.5,
        hidden: int = 4,
        fine_tuning: bool = False,
    ) -> None:
        super().__init__()
        if form not in FORMS or not 0 < start < 1 or hidden < 1:
            raise ShapeError(
                f"A gate expects a form among {', '.join(FORMS)}, 0 < start < 1 and hidden ≥ 1; received '{form}', {start} and "
                f"{hidden}."
            )
        self.heads, self.form, self.start, self.fine_tuning = heads, form, start, fine_tuning
        K = width // heads
        shapes: dict[Form, tuple[int, ...]] = {
            **{"linear": (heads, K), "mlp": (heads, hidden), "all_heads": (heads, width), "elementwise": (heads * K, width)},
            "constant": (heads,),
        }
        shape = shapes[form]
        if form != "constant":
            self.weight = nn.Parameter(0.01 * torch.randn(shape) if fine_tuning else _uniform(shape, shape[-1]))
        self.bias = nn.Parameter(torch.full(shape[:1], math.log(start / (1 - start))))
        if form == "mlp":
            self.hidden_weight = nn.Parameter(_uniform((heads, hidden, K), K))
            self.hidden_bias = nn.Parameter(_uniform((heads, hidden), K))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self._logit(x)).unflatten(-1, (self.heads, -1))
        return gate / self.start if self.fine_tuning else gate

    def _logit(self, x: Tensor) -> Tensor:
        """[B, T, H] or [B, T, H·K]."""
        if self.form == "constant":
            return self.bias.expand(*x.shape[:2], -1)
        if self.form in ("all_heads", "elementwise"):
            return F.linear(x, self.weight, self.bias)
        h = x.unflatten(-1, (self.heads, -1))
        if self.form == "mlp":
            h = F.relu(torch.einsum("bthk,hnk->bthn", h, self.hidden_weight) + self.hidden_bias)
        return torch.einsum("bthk,hk->bth", h, self.weight) + self.bias


def _uniform(shape: tuple[int, ...], inputs: int) -> Tensor:
    """As nn.Linear starts: ±1 / √inputs."""
    return (2 * torch.rand(shape) - 1) * inputs**-0.5
