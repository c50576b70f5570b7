"""Reformer: full shared attention in one chunk, dense attention under the pairs that meet, what hashing finds, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar.errors import ShapeError
from instar.kernels.lsh_attention import SELF, lsh_attention
from instar.mixers.reformer import Reformer

B, D, H = 2, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/reformer.toml", cards.Card)


def make(tokens: int, **knobs: Any) -> tuple[Reformer, Tensor]:
    torch.manual_seed(0)
    return Reformer(D, heads=H, **knobs).double(), torch.randn(B, tokens, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def dense(q: Tensor, v: Tensor, attend: Tensor) -> Tensor:
    """Shared attention under a mask, each token reading itself only where it sees no other."""
    scores = (q @ F.normalize(q, dim=-1).mT * q.shape[-1] ** -0.5).masked_fill(torch.eye(q.shape[2], dtype=torch.bool), SELF)
    return torch.softmax(scores.masked_fill(~attend, -torch.inf), dim=-1) @ v


def test_one_bucket_in_one_chunk_is_full_shared_attention() -> None:
    layer, x = make(30, chunk=30)
    q, v = layer._split(layer.qk_proj(x)), layer._split(layer.v_proj(x))
    want = dense(q, v, torch.ones(30, 30, dtype=torch.bool))
    close(layer(x)[0], layer.o_proj(want.transpose(1, 2).flatten(2)))


def test_one_bucket_in_two_chunks_is_too() -> None:
    """Each sees the other, by the way round the end."""
    torch.manual_seed(0)
    q, v = torch.randn(2, B, H, 20, 8, dtype=torch.float64).unbind()
    y = lsh_attention(q, v, torch.zeros(B, 3, H, 20, dtype=torch.int64), torch.full((B,), 20), 10)
    close(y, dense(q, v, torch.ones(20, 20, dtype=torch.bool)))


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize(("tokens", "chunk"), [(64, 8), (61, 8), (50, 7)])
def test_kernel_is_dense_attention_among_the_pairs_that_meet(rounds: int, tokens: int, chunk: int) -> None:
    torch.manual_seed(0)
    q, v = torch.randn(2, B, H, tokens, 8, dtype=torch.float64).unbind()
    bucket = torch.randint(5, (B, rounds, H, tokens))
    order = (bucket * tokens + torch.arange(tokens)).argsort(-1)
    at = order.argsort(-1) // chunk
    last = -(-tokens // chunk) - 1
    step = (at.unsqueeze(-1) - at.unsqueeze(-2)) % (last + 1)
    meet = (bucket.unsqueeze(-1) == bucket.unsqueeze(-2)) & (step <= 1)
    close(lsh_attention(q, v, bucket, torch.full((B,), tokens), chunk), dense(q, v, meet.any(1)))


def test_a_token_alone_in_its_bucket_reads_itself() -> None:
    torch.manual_seed(0)
    q, v = torch.randn(2, 1, 1, 6, 4, dtype=torch.float64).unbind()
    close(lsh_attention(q, v, torch.arange(6).view(1, 1, 1, 6), torch.tensor([6]), 2), v)


def test_near_queries_share_a_bucket_more_often_and_opposite_ones_never() -> None:
    layer, _ = make(1, rounds=64, chunk=8, buckets=16)
    torch.manual_seed(0)
    q = torch.randn(1, H, 1, D // H, dtype=torch.float64)
    shared = []
    for noise in (0.1, 0.5, 2.0):
        other = q + noise * torch.randn_like(q)
        bucket = layer._hash(torch.cat([q, other, -q, 3.0 * q], dim=2), torch.tensor([64]))
        shared.append(float((bucket[..., 0] == bucket[..., 1]).double().mean()))
        assert not bool((bucket[..., 0] == bucket[..., 2]).any())
        assert bool((bucket[..., 0] == bucket[..., 3]).all())  # the length of a query does not matter
    assert shared[0] > 0.75
    assert shared[0] > shared[1] > shared[2]


def test_more_rounds_see_more_pairs_and_come_nearer_to_full_attention() -> None:
    errors = []
    for rounds in (1, 4, 16):
        layer, x = make(128, chunk=16, rounds=rounds)
        q, v = layer._split(layer.qk_proj(x)), layer._split(layer.v_proj(x))
        full = layer.o_proj(dense(q, v, torch.ones(128, 128, dtype=torch.bool)).transpose(1, 2).flatten(2))
        errors.append(float((layer(x)[0] - full).detach().square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_hashes_can_be_redrawn_and_are_saved() -> None:
    layer, x = make(128, chunk=16)
    other, _ = make(128, chunk=16, seed=1)
    other.load_state_dict(layer.state_dict())
    close(other(x)[0], layer(x)[0])
    other.redraw(1)
    assert not torch.allclose(other(x)[0], layer(x)[0])


@pytest.mark.parametrize("tokens", [256, 100])
def test_flops_follow_the_card(tokens: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        Reformer(128, chunk=32)(torch.randn(1, tokens, 128))
    sizes = {"T": tokens, "D": 128, "H": 4, "chunk": 32, "rounds": 4, "buckets": 64}
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"chunk": 0}, {"rounds": 0}, {"buckets": 3}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Reformer(D, **{"heads": H, **wrong})


def test_half_precision_is_near_the_exact_one() -> None:
    torch.manual_seed(0)
    mixer, x = Reformer(32, chunk=8, seed=0), torch.randn(2, 40, 32)
    with torch.no_grad():
        want = mixer(x)[0]
        found = mixer.half()(x.half())[0]
    assert found.dtype == torch.float16
    assert float((found.float() - want).norm() / want.norm()) < 0.1  # a few tokens fall into other buckets
