"""Attention among tokens of the same bucket, sorted and cut into chunks: never a T × T matrix.

Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer" (arXiv 2001.04451).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SELF = -1e5
"""The score of a token with itself: it is read only where there is nothing else."""


def unit(q: Tensor) -> Tensor:
    """q / |q|, 0 for 0. torch's bound of 1e-12 is itself 0 in float16."""
    return F.normalize(q, dim=-1, eps=max(1e-12, torch.finfo(q.dtype).tiny))


def lsh_attention(q: Tensor, v: Tensor, bucket: Tensor, lengths: Tensor, chunk: int) -> Tensor:
    r"""o_i = Σ_{j ∈ P(i)} softmax_j(q_i·k_j / √K) v_j with k_j = q_j / |q_j|.

    In each round tokens are sorted by (bucket, position) and cut into chunks of m; P(i) are those of i's bucket in its own
    chunk and the one before it (before the first comes the last), in any round. Rounds are attended to apart and joined by
    their sums of exponentials, in which each pair is divided by the number of rounds where it meets: one softmax over P.

    Args:
        q, v: [S, H, L, K]. bucket: int64 [S, rounds, H, L], ≥ 0. lengths: int64 [S], real tokens, which come first. chunk: m.

    Returns [S, H, L, K], finite beyond `lengths`. O(rounds (L log L + L m (K + rounds)) H) time.
    """
    rounds, L, m = bucket.shape[1], bucket.shape[3], chunk
    n = -(-L // m)
    N = n * m
    q, v = (F.pad(part, (0, 0, 0, N - L)).unsqueeze(1) for part in (q, v))
    place = torch.arange(N, device=q.device)
    real = (place < lengths.unsqueeze(1))[:, None, None]
    bucket = F.pad(bucket, (0, N - L)).masked_fill(~real, -1)
    order = torch.where(real, bucket * N + place, bucket.amax() * N + N + place).argsort(dim=-1)  # sorted position -> token
    sorted_at = order.argsort(dim=-1)  # token -> sorted position
    last = (-(-lengths // m) - 1).clamp(min=0)  # of the chunks with real tokens
    at = torch.arange(n, device=q.device)
    before = torch.where(at > 0, at - 1, last.unsqueeze(1))  # [S, n]

    def sort(part: Tensor) -> Tensor:
        """[S, 1 or rounds, H, N, C] -> chunks [S, rounds, H, n, m, C]."""
        index = order.unsqueeze(-1).expand(*order.shape, part.shape[-1])
        return part.expand(-1, rounds, -1, -1, -1).gather(3, index).unflatten(3, (n, m))

    def beside(part: Tensor) -> Tensor:
        """Chunks [..., n, m, C] and the one before each: [..., n, 2 m, C]."""
        index = before[:, None, None, :, None, None].expand(*part.shape)
        return torch.cat([part, part.gather(3, index)], dim=4)

    # Which pairs meet, in this round and in how many of all: names for bucket and chunk of a token, and bucket and chunk before.
    chunk_of = sorted_at // m
    chunk_before = torch.where(chunk_of > 0, chunk_of - 1, last.view(-1, 1, 1, 1))
    names = torch.stack([bucket * n + chunk_of, bucket * n + chunk_before], dim=-1).to(torch.int32)
    meetings, here = torch.zeros((), device=q.device), []
    for r in range(rounds):
        own = sort(names[:, r : r + 1])
        other = beside(own[..., :1]).mT
        met = (own[..., :1] == other) | (own[..., 1:] == other)
        meetings = meetings + met
        here.append(met[:, r])
    twice = (before == at)[:, None, None, :, None, None] & (torch.arange(2 * m, device=q.device) >= m)  # a chunk before itself
    token = sort(place.expand(order.shape).unsqueeze(-1))
    itself = token == beside(token).mT

    queries = sort(q)
    scores = queries @ beside(unit(queries)).mT * q.shape[-1] ** -0.5
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))  # in half precision SELF overflows, or hides the meetings
    scores = scores.masked_fill(itself, SELF) - meetings.clamp(min=1).to(scores.dtype).log()
    scores = scores.masked_fill(~torch.stack(here, dim=1) | twice, torch.finfo(scores.dtype).min)
    total = scores.logsumexp(-1, keepdim=True)
    read = (scores - total).exp().to(v.dtype) @ beside(sort(v))
    joint = torch.cat([read, total], dim=-1).flatten(3, 4)
    joint = joint.gather(3, sorted_at.unsqueeze(-1).expand(*sorted_at.shape, joint.shape[-1]))
    return (torch.softmax(joint[..., -1:], dim=1) * joint[..., :-1]).sum(1)[:, :, :L].to(v.dtype)
