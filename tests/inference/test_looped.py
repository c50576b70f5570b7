"""A loop is its unrolled network, its window is full back-propagation cut short, and it computes what it is built to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.gpt2_block import Gpt2Block, stack
from instar.inference.loop import Loop
from instar.inference.looped import Looped
from instar.inference.regression import squared_error


def made(**arguments: Any) -> Looped:
    torch.manual_seed(0)
    return Looped(16, **{"heads": 2, "steps": 4, "window": 2, **arguments}).double()


X = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_one_loop_without_injection_is_an_ordinary_stack() -> None:
    blocks = stack(16, 2, 2).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(Loop(blocks, injection="none", start="input")(x, 1)[-1], blocks(x))


def test_a_loop_is_the_unrolled_network_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    block = Gpt2Block(16, 2).double()
    p = torch.randn(2, 5, 16, dtype=torch.float64)
    copies = [copy.deepcopy(block) for _ in range(3)]
    z = torch.zeros_like(p)
    for one in copies:
        z = one(z + p)
    found = Loop(block)(p, 3)[-1]
    assert torch.allclose(found, z, atol=1e-13)
    up = torch.randn_like(z)
    own = torch.autograd.grad((found * up).sum(), list(block.parameters()))
    each = [torch.autograd.grad((z * up).sum(), list(one.parameters()), retain_graph=True) for one in copies]
    for g, parts in zip(own, zip(*each, strict=True), strict=True):
        assert torch.allclose(g, sum(parts), atol=1e-11)  # type: ignore[arg-type]


def test_the_window_changes_gradients_and_memory_but_no_values() -> None:
    model = made()
    p = model.enter(X)
    whole, part = model.loop(p, 4), model.loop(p, 4, window=2)
    assert len(whole) == 4
    assert len(part) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], part, strict=True))
    assert torch.autograd.grad(part[-1].sum(), model.loop.block.positions)[0].abs().max() > 0  # type: ignore[union-attr,arg-type]
    full = made(window=4)
    full.loss(X, X[..., :1]).backward()
    again = [g.grad.clone() for g in full.parameters() if g.grad is not None]
    full.zero_grad()
    torch.stack([squared_error(full.leave(z), X[..., :1]) for z in full.loop(full.enter(X), 4)]).mean().backward()
    assert all(torch.allclose(a, g.grad, atol=1e-12) for a, g in zip(again, full.parameters(), strict=False))  # type: ignore[arg-type]


def test_positions_and_norm_act_in_every_loop() -> None:
    model = made()
    z = model.loop(model.enter(X), 3)[-1]
    assert torch.allclose(model.loop.block.norm(torch.zeros(16).double()), model.loop.block.norm.bias)  # type: ignore[operator,union-attr]
    assert torch.allclose(z.mean(-1), torch.zeros(3, 8, dtype=torch.float64), atol=1e-9)  # normed, weight 1 and bias 0


def test_algoformer_with_identities_around_it_is_the_loop() -> None:
    model = made(pre=1, post=1)
    model.pre, model.post = nn.Sequential(), nn.Sequential()
    assert model.positions is not None
    p = model.read_in(X) + model.positions[:8]
    z = torch.zeros_like(p)
    for _ in range(4):
        z = model.loop.block(z + p)  # type: ignore[operator]
    assert torch.allclose(model.predict(X, steps=4)[0], model.read_out(z), atol=1e-12)


def test_a_converged_sample_stops_by_itself_and_more_loops_change_nothing() -> None:
    class Contracts(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 0.5 * z

    p = torch.cat([torch.zeros(1, 4), torch.randn(2, 4), 1e3 * torch.ones(1, 4)]).double()
    loop = Loop(Contracts())
    z, loops, changes = loop.adaptive(p, tolerance=1e-6, most=200)
    assert torch.allclose(z, p, atol=1e-2)
    assert loops[0] == 1
    assert bool((loops[1:] > 15).all())
    assert bool((loops < 40).all())
    assert changes.shape == (int(loops.max()), 4)
    more, _, _ = loop.adaptive(p, tolerance=0.0, most=400)
    assert torch.allclose(more, p, atol=1e-12)
    assert torch.allclose(z, more, rtol=1e-5, atol=1e-2)
    model = made(tolerance=0.05)
    y, trace = model.predict(X, steps=50)
    for row, loops_of_row in enumerate(trace.steps.tolist()):
        model.tolerance = 0.0
        assert torch.allclose(model.predict(X[row : row + 1], steps=loops_of_row)[0], y[row : row + 1], atol=1e-10)


def test_masks_go_on_with_their_samples() -> None:
    class Averages(nn.Module):
        def forward(self, z: Tensor, keep: Tensor, scale: Tensor) -> Tensor:
            return scale * (z * keep[..., None]).sum(1, keepdim=True) / keep.sum(1)[:, None, None] + 0 * z

    torch.manual_seed(0)
    p, keep, scale = torch.randn(3, 4, 8).double(), torch.ones(3, 4).double(), torch.tensor(0.5).double()
    p[0], keep[1, 2:] = 0, 0
    loop = Loop(Averages())
    z, loops, _ = loop.adaptive(p, tolerance=1e-6, most=60, keep=keep, scale=scale)
    assert loops[0] < loops[1:].min()
    for row in range(3):
        alone = loop(p[row : row + 1], int(loops[row]), keep=keep[row : row + 1], scale=scale)[-1]
        torch.testing.assert_close(z[row : row + 1], alone)


def test_the_implicit_gradient_is_that_of_many_loops() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6).double()
    with torch.no_grad():
        layer.weight.mul_(0.5)
    block = nn.Sequential(layer, nn.Tanh())
    loop, p = Loop(block), torch.randn(4, 6, dtype=torch.float64)
    found = torch.autograd.grad(loop.implicit(p, 80).square().sum(), list(block.parameters()))
    wanted = torch.autograd.grad(loop(p, 80)[-1].square().sum(), list(block.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-9) for a, b in zip(found, wanted, strict=True))
    block.requires_grad_(False)
    torch.testing.assert_close(loop.implicit(p, 80), loop(p, 80)[-1], rtol=1e-8, atol=1e-9)  # nothing to differentiate


def test_a_linear_attention_block_is_gradient_descent_and_newton_schulz_is_the_inverse() -> None:
    """The loop's state holds what remains of y: y_j ← y_j − η/n Σ_i y_i ⟨x_i, x_j⟩ is T steps of gradient descent from 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, 3, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(3, 1, generator=generator, dtype=torch.float64)) + 0.1
    rate = 0.3

    class LinearAttention(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            keys, values = z[..., :3], z[..., 3:]
            return torch.cat([keys, values - rate / z.shape[1] * keys @ (keys.mT @ values)], -1)

    start = torch.cat([x, y], -1)
    residual = Loop(LinearAttention(), injection="none", start="input")(start, 20)[-1][..., 3:]
    w = torch.zeros(1, 3, 1, dtype=torch.float64)
    for _ in range(20):
        w = w - rate / 12 * x.mT @ (x @ w - y)
    assert torch.allclose(y - residual, x @ w, atol=1e-6)
    A = (x.mT @ x)[0] + torch.eye(3)

    class NewtonSchulz(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * z - z @ A @ z

    first = (A.mT / (A.abs().sum(0).max() * A.abs().sum(1).max()))[None]
    inverse = Loop(NewtonSchulz(), injection="none", start="input")(first, 20)[-1][0]
    assert torch.allclose(inverse, torch.linalg.inv(A), atol=1e-6)


def test_loops_grow_with_training_and_stay_in_the_state_dict() -> None:
    model = made(steps=7, window=2, grow_every=3).train()
    seen = []
    for _ in range(12):
        seen.append(model.loops())
        model.loss(X, X[..., :1])
    assert seen == [2, 2, 2, 4, 4, 4, 6, 6, 6, 7, 7, 7]
    assert int(model.state_dict()["trained"]) == 12


@pytest.mark.parametrize(
    "options", [{"injection": "gate"}, {"index": 3}, {"deepen": True}, {"last_only": True}, {"implicit": True}]
)
def test_options_train(options: dict[str, Any]) -> None:
    model = made(**options)
    loss = model.loss(X, X[..., :1])
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "gate" in name or "index" in name)


def test_without_injection_all_before_the_loop_is_learnt() -> None:
    plain = {"pre": 1, "post": 1, "injection": "none", "start": "input"}
    short, whole = made(**plain), made(**plain, window=4)
    target = X[..., :1]
    losses = torch.stack([squared_error(whole.leave(z), target) for z in whole.loop(whole.enter(X), 4)[-2:]])
    losses.mean().backward()
    short.loss(X, target).backward()
    for (name, one), other in zip(short.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12), name  # type: ignore[arg-type]
        assert one.grad.any(), name  # type: ignore[union-attr]
    for wrong in ({"start": "zero"}, {"implicit": True}):
        with pytest.raises(ShapeError, match="without injection"):
            made(**{**plain, **wrong})


def test_positions_without_a_target_are_not_counted() -> None:
    target = X[..., :1].clone()
    target[:, ::2] = float("nan")
    y = torch.zeros_like(target)
    assert torch.allclose(squared_error(y, target), X[:, 1::2, :1].square().mean())


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"steps": 0}, {"heads": 3}, {"injection": "mix"}, {"start": "x"}, {"init": "zeros"}, {"pre": -1}):
        with pytest.raises(ShapeError):
            made(**wrong)
    with pytest.raises(ShapeError, match="received \\[3, 8, 4\\]"):
        made().predict(X[..., :4], steps=1)
    with pytest.raises(ShapeError, match="keeps the shape"):
        Loop(nn.Linear(4, 3))(torch.zeros(2, 4), 2)
    with pytest.raises(ShapeError, match="give width"):
        Loop(nn.Identity(), injection="gate")
