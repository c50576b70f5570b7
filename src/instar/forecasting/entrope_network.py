"""EntroPE as a module: patches of unequal length pooled, mixed, and given back to the values of a window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout
from instar.forecasting.entropy_patches import EntropyPatcher
from instar.forecasting.linear import InstanceNorm
from instar.models.decoder import SwiGLU


class RotaryLayer(nn.Module):
    """x ← x + attention(RMSNorm(x)) with rotary positions; x ← x + SwiGLU(RMSNorm(x)). No biases."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ShapeError(f"Rotary positions need heads of even width; received width={width}, heads={heads}.")
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.feed = SwiGLU(width, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: bool [T, T] or [B, 1, T, T], what each position may read."""
        z = self.first(x)
        q, k, v = (layer(z).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        q, k, v = (part.transpose(1, 2) for part in (*turned(q, k), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.feed(self.second(x))


def turned(*parts: Tensor) -> tuple[Tensor, ...]:
    """Rotary positions of [B, T, H, K] tensors, base 10⁴, in float32 or better.

    Neighbouring numbers are a pair, as in the authors' code: `positions.rotate` with the axes of K in another order, and one
    product instead of four.
    """
    _, T, _, K = parts[0].shape
    dtype, device = torch.promote_types(parts[0].dtype, torch.float32), parts[0].device
    angle = torch.arange(T, device=device)[:, None] * 1e4 ** (-torch.arange(0, K, 2, device=device, dtype=dtype) / K)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    pairs = (torch.view_as_complex(part.to(dtype).unflatten(-1, (-1, 2))) for part in parts)
    return tuple(torch.view_as_real(pair * turn).flatten(-2).to(part.dtype) for pair, part in zip(pairs, parts, strict=True))


class CrossAttention(nn.Module):
    """y = RMSNorm(x) + W attention(RMSNorm(x), RMSNorm(memory)), to be added to x; the first term is the authors' too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.asks, self.tells = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """mask: bool [B, T, S]."""
        x, memory = self.asks(x), self.tells(memory)
        parts = (layer(z) for layer, z in ((self.query, x), (self.key, memory), (self.value, memory)))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return x + self.out(y.transpose(1, 2).flatten(2))


class EntroPENetwork(nn.Module):
    r"""Each series alone: tokens, patches by entropy, and ŷ = σ · W flatten(values after the decoder) + μ.

    1. A window with mean 0 and deviation 1 becomes tokens and patches (`EntropyPatcher`). 2. Token embeddings pass a causal
    layer. 3. The maximum of each patch's tokens asks, by cross-attention, all tokens of its own and earlier patches (`own`: of
    its own only). 4. Layers between the patches, both ways. 5. Each token asks the patches up to its own, and passes a causal
    layer. 6. One linear head. Places behind a window's last patch are read by nobody.

    Args:
        patcher: cuts. context: L. horizon: H. width: D. depth: layers between patches. heads. hidden: a multiple that the feed's
            width is rounded up to, from 8/3 D. dropout: of embedding and values. own: see above.

    Shapes: x [B, L, N] -> [B, H, N], any N. PyTorch's default initialisation. Source: EntroPE (arXiv 2509.26157). Raises
    ShapeError.
    """

    def __init__(
        self,
        patcher: EntropyPatcher,
        context: int,
        horizon: int,
        *,
        width: int = 8,
        depth: int = 1,
        heads: int = 2,
        hidden: int = 32,
        dropout: float = 0.1,
        own: bool = False,
    ) -> None:
        super().__init__()
        feed = -(-8 * width // (3 * hidden)) * hidden
        self.patcher, self.count, self.own = patcher, patcher.most(context), own
        self.norm, self.drop = InstanceNorm(), Dropout(dropout)
        self.embedding = nn.Embedding(patcher.quantiser.vocabulary, width)
        self.local, self.decoder = RotaryLayer(width, heads, feed), RotaryLayer(width, heads, feed)
        self.asking, self.telling = CrossAttention(width, heads), CrossAttention(width, heads)
        self.layers = nn.ModuleList(RotaryLayer(width, heads, feed) for _ in range(depth))
        self.last = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width * context, horizon)

    def forward(self, x: Tensor, *, starts: Tensor | None = None) -> Tensor:
        """starts: bool [B, N, L], what `cuts` gives for x, where it is known."""
        B, L, N = x.shape
        scaled, mean, deviation = self.norm(x)
        rows = scaled.mT.reshape(B * N, L)
        if starts is None:
            tokens, patch, _ = self.patcher(rows)
        else:
            tokens, patch = self.patcher.quantiser(rows), starts.flatten(0, 1).cumsum(1) - 1
        causal = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        z = self.local(self.drop(self.embedding(tokens)), causal)
        p = self.patches(z, patch)
        number = torch.arange(self.count, device=x.device)
        real = number <= patch[:, -1:]  # [B·N, P]
        for layer in self.layers:
            p = layer(p, (real[:, None, :] | ~real[:, :, None])[:, None])  # a place behind the last reads all and is read by none
        z = z + self.telling(z, p, number <= patch[:, :, None])
        z = self.drop(self.last(self.decoder(z, causal)))
        return self.head(z.flatten(1)).view(B, N, -1).mT * deviation + mean

    @torch.no_grad()
    def cuts(self, x: Tensor) -> Tensor:
        """Where patches begin: x [B, L, N] -> bool [B, N, L]."""
        B, L, N = x.shape
        _, patch, _ = self.patcher(self.norm(x)[0].mT.reshape(B * N, L))
        return patch.diff(dim=1, prepend=patch.new_full((B * N, 1), -1)).bool().view(B, N, L)

    def patches(self, z: Tensor, patch: Tensor) -> Tensor:
        """Pooled and then asked: z [B, L, D], the patch of each value [B, L] -> [B, P, D]; zeros behind the last."""
        number = torch.arange(self.count, device=z.device)
        p = pooled(z, patch, self.count)
        reads = patch[:, None, :] == number[:, None] if self.own else patch[:, None, :] <= number[:, None]
        reads = reads | (number[:, None] > patch[:, None, -1:])
        return p + self.asking(p, z, reads)


def pooled(z: Tensor, patch: Tensor, count: int) -> Tensor:
    """The maximum of each patch's tokens: z [B, L, D], patch int64 [B, L] -> [B, count, D], 0 where a patch has none."""
    start = z.new_zeros(len(z), count, z.shape[2])
    return start.scatter_reduce(1, patch[..., None].expand_as(z), z, "amax", include_self=False)
