"""The association: attention with no update, a hand iteration with several, one state at a time; stops, masks, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import DivergedError
from instar.kernels import hopfield
from instar.kernels.hopfield import associate, settle, settle_reference, weights
from instar.kernels.hopfield_few_states import associate_few

B, H, S, N, K = 3, 2, 5, 7, 4


def make() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, n, K, dtype=torch.float64) for n in (S, N, N))
    return q, k, v


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def some_mask() -> Tensor:
    torch.manual_seed(1)
    attend = torch.rand(B, 1, S, N) < 0.6
    attend[0, 0, 1] = False  # a state that sees nothing
    return attend


def test_without_updates_it_is_attention() -> None:
    q, k, v = make()
    assert torch.equal(associate(q, k, v, beta=K**-0.5), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_updates_are_those_done_by_hand(n: int) -> None:
    q, k, v = make()
    for _ in range(n):
        q = torch.softmax(0.7 * q @ k.mT, dim=-1) @ k
    close(associate(make()[0], k, v, beta=0.7, steps=n, eps=1e-30), torch.softmax(0.7 * q @ k.mT, dim=-1) @ v)


@pytest.mark.parametrize("steps", [1, 4, -1, (2, -1)], ids=str)
@pytest.mark.parametrize("eps", [0.3, 1e-3, (0.5, 1e-6)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_fast_form_equals_the_written_out_one(steps: Any, eps: Any, masked: bool) -> None:
    """Values, numbers of updates and gradients, β of each head among them."""
    attend = some_mask() if masked else None
    taken = []
    for way in (settle, settle_reference):
        q, k, v = (part.requires_grad_() for part in make())
        beta = torch.tensor([0.4, 2.0], dtype=torch.float64, requires_grad=True)
        state, updates = way(q, k, beta=beta, steps=steps, eps=eps, attend=attend)
        y = weights(state, k, beta=beta, attend=attend) @ v
        torch.manual_seed(2)
        taken.append([y, updates, *torch.autograd.grad((y * torch.randn_like(y)).sum(), (q, k, v, beta))])
    assert torch.equal(taken[0][1], taken[1][1])
    for a, b in zip(*taken, strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("eps", [0.3, 0.03, 1e-4])
def test_a_state_stops_by_itself_whatever_the_others_do(eps: float) -> None:
    q, k, _ = make()
    together, updates = settle(q, k, beta=1.0, steps=-1, eps=eps)
    for b in range(B):
        for s in range(S):
            alone, own = settle(q[b : b + 1, :, s : s + 1], k[b : b + 1], beta=1.0, steps=-1, eps=eps)
            close(alone[0, :, 0], together[b, :, s])
            assert torch.equal(own[0, :, 0], updates[b, :, s])
    assert len(updates.unique()) > 1  # or all would have stopped together


def test_settled_states_are_fixed_points() -> None:
    q, k, _ = make()
    state, updates = settle(q, k, beta=1.0, steps=-1, eps=1e-12)
    close(torch.softmax(state @ k.mT, dim=-1) @ k, state, 1e-11)
    more, _ = settle(q, k, beta=1.0, steps=int(updates.max()) + 9, eps=1e-30)
    close(more, state, 1e-10)


def test_causal_states_see_the_patterns_up_to_their_own_at_every_update() -> None:
    q, k, v = (part[:, :, :S] for part in make())
    below = torch.ones(S, S, dtype=torch.bool).tril()
    for steps in (3, -1):
        y = associate(q, k, v, beta=1.0, steps=steps, causal=True)
        close(y, associate(q, k, v, beta=1.0, steps=steps, attend=below[None, None]))
        changed = associate(q, k + (torch.arange(S) > 2)[:, None], v, beta=1.0, steps=steps, causal=True)
        close(y[:, :, :3], changed[:, :, :3])


def test_added_scores_and_refusals_are_one_thing() -> None:
    q, k, v = make()
    attend = some_mask()
    added = torch.zeros(attend.shape, dtype=torch.float64).masked_fill(~attend, -torch.inf)
    for steps in (0, 2):
        close(associate(q, k, v, beta=1.0, steps=steps, attend=added), associate(q, k, v, beta=1.0, steps=steps, attend=attend))


def test_a_state_that_sees_nothing_stays_and_reads_zeros() -> None:
    q, k, v = make()
    state, updates = settle(q, k, beta=1.0, steps=-1, attend=some_mask())
    assert torch.equal(state[0, :, 1], q[0, :, 1])
    assert int(updates[0, :, 1].sum()) == 0
    for steps in (0, 3):
        assert float(associate(q, k, v, beta=1.0, steps=steps, attend=some_mask())[0, :, 1].abs().max()) == 0


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v = (part[:1, :, :3].clone().requires_grad_() for part in make())
    beta = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda q, k, v, b: associate(q, k, v, beta=b, steps=3, eps=1e-30), (q, k, v, beta))


@pytest.mark.parametrize("steps", [0, 2, -1, (3, 1)], ids=str)
@pytest.mark.parametrize("mask", ["none", "padding", "of each", "added"])
def test_few_states_need_no_projected_patterns(steps: Any, mask: str) -> None:
    """Values and gradients as with projected patterns, from y and z of other widths than the heads'."""
    torch.manual_seed(0)
    attend = {"none": None, "padding": (torch.rand(B, 1, 1, N) < 0.7), "of each": some_mask(), "added": None}[mask]
    attend = torch.randn(B, H, S, N, dtype=torch.float64) if mask == "added" else attend
    given = [(B, H, S, K), (B, N, 9), (B, N, 6), (H, K, 9), (H, K), (H, 3, 6), (H, 3), (H,)]
    parts = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in given]
    q, y, z, w_k, b_k, w_v, b_v, log_beta = parts
    knobs: dict[str, Any] = {"beta": log_beta.exp(), "steps": steps, "eps": 1e-3, "attend": attend}
    k, v = (torch.einsum("bnd,hkd->bhnk", of, w) + b.unsqueeze(1) for of, w, b in ((y, w_k, b_k), (z, w_v, b_v)))
    got, want = associate_few(q, y, z, w_k, b_k, w_v, b_v, **knobs), associate(q, k, v, **knobs)
    close(got, want, 1e-10)
    weight = torch.randn_like(want)
    for a, b in zip(
        *(torch.autograd.grad((y * weight).sum(), parts, retain_graph=True, materialize_grads=True) for y in (got, want)),
        strict=True,
    ):
        close(a, b, 1e-9)


def test_float32_settles_although_eps_is_below_its_resolution() -> None:
    q, k, _ = (100 * part.float() for part in make())
    state, updates = settle(q, k, beta=1e-4, steps=-1, eps=1e-12)
    assert int(updates.max()) < hopfield.LIMIT
    assert torch.isfinite(state).all()


def test_what_does_not_settle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopfield, "LIMIT", 2)
    q, k, _ = make()
    with pytest.raises(DivergedError, match="2 updates"):
        settle(q, k, beta=1.0, steps=-1, eps=1e-9)


def test_one_graph_cannot_wait_for_states_to_settle() -> None:
    q, k, v = make()

    def way(q: Tensor, steps: int) -> Tensor:
        return associate(q, k, v, beta=1.0, steps=steps)

    close(torch.compile(way, backend="eager", fullgraph=True)(q, 3), way(q, 3))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(way, backend="eager", fullgraph=True)(q, -1)


def test_an_empty_bag_gives_zeros_whatever_the_biases() -> None:
    q, weight, bias = torch.randn(2, H, S, K), torch.randn(H, K, 6), torch.randn(H, K)
    for patterns, attend in ((0, None), (N, torch.zeros(2, 1, 1, N, dtype=torch.bool))):
        y = torch.randn(2, patterns, 6)
        found = associate_few(q, y, y, weight, bias, weight, bias, beta=1.0, steps=1, eps=1e-4, attend=attend)
        assert not found.any()
