"""Prefix attention: every scan against softmax itself, its algebra, and its extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.prefix_attention import PrefixState, empty_state, merge_states, prefix_attention

METHODS = ["sequential", "hillis_steele", "blelloch", "block"]
LENGTHS = [1, 2, 3, 17, 128, 129, 300]
B, H, V = 2, 3, 4


def draw(T: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(B, T, H, dtype=torch.float64, generator=g), torch.randn(
        B, T, H, V, dtype=torch.float64, generator=g
    )


def before(seed: int = 1) -> PrefixState:
    return prefix_attention(*draw(5, seed), method="sequential")[1]


def direct(s: Tensor, v: Tensor) -> Tensor:
    """softmax(s_1..j) · v_1..j for every j, by the definition."""
    T = s.shape[1]
    scores = s.transpose(1, 2).unsqueeze(2).expand(-1, -1, T, -1)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    return torch.einsum("bhji,bihv->bjhv", weights, v)


def close(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("T", LENGTHS)
def test_every_prefix_is_a_softmax_average(method: Any, T: int) -> None:
    s, v = draw(T)
    o, end = prefix_attention(s, v, method=method)
    close([o], [direct(s, v)])
    close([end.m, end.u.log() + end.m], [s.amax(1), s.logsumexp(1)])


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_all_methods_agree_in_values_states_and_gradients(T: int, masked: bool, resets: bool) -> None:
    g = torch.Generator().manual_seed(T)
    mask = torch.rand(B, T, generator=g) > 0.3 if masked else None
    reset = torch.rand(B, T, generator=g) < 0.1 if resets else None
    found = []
    for method in METHODS:
        inputs = [t.clone().requires_grad_() for t in (*draw(T), *before())]
        o, end = prefix_attention(
            inputs[0], inputs[1], PrefixState(*inputs[2:]), mask=mask, reset=reset, decay=0.1, method=method, block=16
        )
        seen = end.u > 0
        loss = (o * torch.cos(torch.arange(o.numel(), dtype=o.dtype).view_as(o))).sum() + end.w.sin().sum()
        loss = loss + (end.u * end.m.masked_fill(~seen, 0.0)).sum()
        found.append([o, *end, *torch.autograd.grad(loss, inputs)])
    for other in found[1:]:
        close(found[0], other, 1e-10)


@pytest.mark.parametrize("block", [2, 7, 32, 1000])
def test_blocks_need_not_divide_the_length(block: int) -> None:
    s, v = draw(129)
    close([prefix_attention(s, v, block=block)[0]], [direct(s, v)])


def test_equals_sdpa_of_a_repeated_query_with_gradients() -> None:
    torch.manual_seed(0)
    T = 70
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((H, V), (B, T, H, V), (B, T, H, V)))
    weight = torch.randn(B, T, H, V, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(
        q.view(1, H, 1, V).expand(B, H, T, V), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    ).transpose(1, 2)
    o, end = prefix_attention((q * k).sum(-1) / V**0.5, v)
    close([o], [expected])
    close(
        torch.autograd.grad((o * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
    )
    last = F.scaled_dot_product_attention(q.view(1, H, 1, V).expand(B, -1, -1, -1), k.transpose(1, 2), v.transpose(1, 2))
    close([end.w / end.u.unsqueeze(-1)], [last.squeeze(2)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [0, 1, 9, 40])
def test_a_stream_may_be_cut_anywhere_and_states_merge(method: Any, cut: int) -> None:
    s, v = draw(40)
    whole, end = prefix_attention(s, v, method=method)
    a, first = prefix_attention(s[:, :cut], v[:, :cut], method=method)
    b, both = prefix_attention(s[:, cut:], v[:, cut:], first, method=method)
    close([torch.cat([a, b], 1), *both], [whole, *end])
    alone = prefix_attention(s[:, cut:], v[:, cut:], method=method)[1]
    close(merge_states(first, alone), end)
    close(merge_states(alone, first), end)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0.5, 10), st.floats(-5, 5)), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_merging_is_a_commutative_monoid(numbers: list[tuple[float, float, float]]) -> None:
    a, b, c = (
        PrefixState(
            *(torch.full(shape, n, dtype=torch.float64) for shape, n in zip(((1, 1), (1, 1), (1, 1, 2)), triple, strict=True))
        )
        for triple in numbers
    )
    close(merge_states(a, merge_states(b, c)), merge_states(merge_states(a, b), c), 1e-9)
    close(merge_states(a, b), merge_states(b, a))
    nothing = empty_state(1, 1, 2, a.w)
    close(merge_states(a, nothing), a, 0.0)
    close(merge_states(nothing, nothing), nothing, 0.0)


def test_a_shift_of_all_scores_changes_nothing() -> None:
    s, v = draw(50)
    close([prefix_attention(s + 100.0, v)[0]], [prefix_attention(s, v)[0]], 1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", [1.0, -1.0, 0.0])
def test_extreme_scores_keep_values_and_gradients_those_of_softmax(method: Any, order: float) -> None:
    g = torch.Generator().manual_seed(0)
    ramp = order * torch.linspace(-1e4, 1e4, 90)
    s = (ramp.view(1, -1, 1) + torch.randn(B, 90, H, generator=g)).requires_grad_()
    v = torch.randn(B, 90, H, V, generator=g).requires_grad_()
    o, end = prefix_attention(s, v, method=method)
    expected = direct(s, v)
    assert all(leaf.isfinite().all() for leaf in end)
    close([o], [expected], 2e-5)
    found = torch.autograd.grad((o * o.detach().cos()).sum(), (s, v))
    wanted = torch.autograd.grad((expected * o.detach().cos()).sum(), (s, v))
    close(found, wanted, 2e-4)


def test_the_future_changes_nothing_not_even_in_rounding() -> None:
    torch.manual_seed(0)
    s, v = torch.randn(B, 100, H), torch.randn(B, 100, H, V)
    o, _ = prefix_attention(s, v)
    later = s.clone()
    later[:, 60:] += 50.0
    assert torch.equal(prefix_attention(later, v)[0][:, :60], o[:, :60])


@pytest.mark.parametrize("method", METHODS)
def test_masked_tokens_are_as_if_absent(method: Any) -> None:
    s, v = draw(40)
    keep = torch.arange(40) % 3 != 0
    dirty = v.masked_fill(~keep.view(1, -1, 1, 1), float("nan"))
    o, end = prefix_attention(s, dirty, mask=keep.expand(B, 40), method=method)
    expected, wanted = prefix_attention(s[:, keep], v[:, keep])
    assert o.isfinite().all()
    close([o[:, keep], *end], [expected, *wanted])
    nothing = prefix_attention(s, v, before(), mask=torch.zeros(B, 40, dtype=torch.bool), method=method)[1]
    close(nothing, before())


def test_outputs_stay_in_the_hull_and_constants_are_kept() -> None:
    s, v = draw(80)
    o, _ = prefix_attention(s, v)
    assert (o <= v.cummax(1).values + 1e-12).all()
    assert (o >= v.cummin(1).values - 1e-12).all()
    close([prefix_attention(s, torch.full_like(v, 0.7))[0]], [torch.full_like(v, 0.7)])


def test_equal_scores_give_the_mean_and_great_ones_the_largest() -> None:
    s, v = draw(60)
    count = torch.arange(1, 61, dtype=torch.float64).view(1, -1, 1, 1)
    close([prefix_attention(torch.zeros_like(s), v)[0]], [v.cumsum(1) / count])
    best = s.cummax(1).indices.unsqueeze(-1).expand_as(v)
    close([prefix_attention(1e7 * s, v)[0]], [v.gather(1, best)])


def test_decay_is_a_penalty_by_age() -> None:
    s, v = draw(30)
    age = torch.arange(30, dtype=torch.float64)
    o, end = prefix_attention(s, v, decay=0.2)
    weights = (s.transpose(1, 2).unsqueeze(2) - 0.2 * (age.view(-1, 1) - age)).masked_fill(age > age.view(-1, 1), -math.inf)
    close([o], [torch.einsum("bhji,bihv->bjhv", weights.softmax(-1), v)])
    close([end.m], [(s + 0.2 * (age.view(1, -1, 1) - 29)).amax(1)])


def test_gradcheck_through_states() -> None:
    s, v = draw(7)
    start = before()

    def function(s: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        o, end = prefix_attention(s, v, PrefixState(*state), block=3, method="block")
        return o, *end

    inputs = [t[:1].detach().clone().requires_grad_() for t in (s, v, *start)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 5)}, "received"),
        ({"values": torch.zeros(2, 4, 3, 4)}, "received"),
        ({"block": 1}, "block=1"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"method": "fast"}, "'fast'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"scores": torch.zeros(2, 5, 3), "values": torch.zeros(2, 5, 3, 4), **change}
    with pytest.raises(ShapeError, match=message):
        prefix_attention(**arguments)
