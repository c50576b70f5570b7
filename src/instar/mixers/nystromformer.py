"""Nyströmformer: the matrix of attention rebuilt from its rows and columns at a few landmarks.

Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention"
(arXiv 2102.03902).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.pseudo_inverse import pseudo_inverse
from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence


class Nystromformer(Projecting, WholeSequence):
    r"""O = F A⁺ (B V) + conv(V), with Q̃, K̃ the means of m segments of the queries and keys and

        F = softmax(Q K̃ᵀ / √K),   A = softmax(Q̃ K̃ᵀ / √K),   B = softmax(Q̃ Kᵀ / √K)

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        landmarks: m. A sequence of L < m tokens has L landmarks, its own tokens; then O is full attention but for A⁺.
        iterations: of the pseudo-inverse. conv_size: tokens of a depthwise convolution of the values, odd; 0 for none.
        bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + m D) + m³ H) time. Differs from the paper: segments
    of a length that m does not divide differ by one token instead of being filled up; the norms in A⁺ are of each head's
    matrix, where the authors' code takes the largest of the batch.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        landmarks: int = 64,
        iterations: int = 6,
        conv_size: int = 33,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, bias)
        if landmarks < 1 or iterations < 1 or conv_size < 0 or (conv_size and conv_size % 2 == 0):
            raise ShapeError(
                "landmarks and iterations must be positive and conv_size odd (or 0 for none); "
                f"received {landmarks}, {iterations} and {conv_size}."
            )
        self.landmarks, self.iterations, self.conv_size = landmarks, iterations, conv_size
        if conv_size:
            self.conv = nn.Conv2d(heads, heads, (conv_size, 1), padding=(conv_size // 2, 0), groups=heads, bias=False)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        L, m = x.shape[1], min(self.landmarks, x.shape[1])
        q, k, v = self.project(x)
        seen = real[:, None, :, None]
        v = v * seen
        lengths = real.sum(1, keepdim=True)
        used = lengths.clamp(max=m)  # landmarks of each sequence
        place = torch.arange(L, device=x.device).expand(x.shape[0], L)
        segment = torch.where(real, place * used // lengths.clamp(min=1), m)
        member = F.one_hot(segment, m + 1)[..., :m].to(q.dtype).mT
        member = (member / member.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(1)
        valid = (torch.arange(m, device=x.device) < used)[:, None]
        q_m, k_m = member @ q, member @ k
        # A row without landmarks, and a landmark that does not exist, must still sum to one; the latter is cut out below.
        columns = (valid | (torch.arange(m, device=x.device) == 0)).unsqueeze(1)
        tokens = (real | (place == 0))[:, None, None]
        weights = [
            torch.softmax((a @ b.mT * self.head_width**-0.5).masked_fill(~known, -torch.inf), dim=-1)
            for a, b, known in ((q, k_m, columns), (q_m, k_m, columns), (q_m, k, tokens))
        ]
        exists = (valid.unsqueeze(-1) & valid.unsqueeze(-2)).to(q.dtype)
        middle = weights[1] * exists + torch.diag_embed((~valid).to(q.dtype))
        with torch.autocast(x.device.type, enabled=False):
            inverse = pseudo_inverse(middle.to(torch.promote_types(middle.dtype, torch.float32)), self.iterations)
            y = (weights[0].to(inverse.dtype) @ inverse) @ (weights[2].to(inverse.dtype) @ v.to(inverse.dtype))
        y = y.to(v.dtype)
        return self.leave(y + self._beside(v) if self.conv_size else y)

    def _beside(self, v: Tensor) -> Tensor:
        """The convolution of values [S, H, L, K] along tokens."""
        if self.heads > 1:
            return self.conv(v)
        # Of a single channel, oneDNN (torch 2.13) writes beyond its memory in the gradient of a kernel longer than the rows.
        rows = F.conv1d(v.transpose(2, 3).flatten(0, 2).unsqueeze(1), self.conv.weight[..., 0], padding=self.conv_size // 2)
        return rows.view(v.shape[0], 1, v.shape[3], v.shape[2]).transpose(2, 3)

    def alone(self, x: Tensor) -> Tensor:
        L, m = x.shape[0], min(self.landmarks, x.shape[0])
        q, k, v = self.project(x.unsqueeze(0))
        segment = torch.arange(L, device=x.device) * m // L
        q_m, k_m = (torch.stack([part[:, :, segment == s].mean(2) for s in range(m)], dim=2) for part in (q, k))
        scale = self.head_width**-0.5
        left, A, right = (torch.softmax(a @ b.mT * scale, dim=-1) for a, b in ((q, k_m), (q_m, k_m), (q_m, k)))
        y = left @ pseudo_inverse(A, self.iterations) @ (right @ v)
        if self.conv_size:
            half = self.conv_size // 2
            window = F.pad(v, (0, 0, half, half)).unfold(2, self.conv_size, 1)
            y = y + torch.einsum("bhlkw,hw->bhlk", window, self.conv.weight[:, 0, :, 0])
        return self.leave(y)[0]
