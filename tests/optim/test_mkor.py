"""MKOR: closed forms of its rules, equality with the inner optimiser and with K-FAC where they must agree, resumption, groups."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import CheckpointError, ShapeError, UnknownNameError
from instar.optim.hybrid import HybridPolicy
from instar.optim.inverse import RULES, stabilised, updated
from instar.optim.kfac import KFAC
from instar.optim.mkor import MKOR

GAMMA = 0.95


def vectors(count: int, size: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))


def data(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator), torch.randn(rows, 3, generator=generator)


def sgd(lr: float = 0.05) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum=0.9)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int, x: Tensor, y: Tensor) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def equal(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> bool:
    return all(torch.allclose(p, q, rtol=0, atol=tolerance) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_exact_is_the_inverse_of_the_decaying_covariance() -> None:
    inverse, factor = torch.eye(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    for v in vectors(20, 7):
        inverse, factor = updated(inverse, v, "exact", GAMMA), GAMMA * factor + (1 - GAMMA) * torch.outer(v, v)
        torch.testing.assert_close(inverse, torch.linalg.inv(factor), rtol=1e-9, atol=1e-10)


def test_released_is_the_inverse_of_what_it_says_and_stays_within_one() -> None:
    inverse, eye = torch.eye(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    for v in vectors(20, 7):
        wanted = torch.linalg.inv(torch.linalg.inv(GAMMA * inverse + (1 - GAMMA) * eye) + torch.outer(v, v))
        inverse = updated(inverse, v, "released", GAMMA)
        torch.testing.assert_close(inverse, wanted, rtol=1e-9, atol=1e-10)
        values = torch.linalg.eigvalsh(inverse)
        assert values[0] > 0
        assert values[-1] <= 1 + 1e-12
        assert torch.equal(inverse, inverse.T)


def test_released_returns_to_the_identity_without_news() -> None:
    inverse = updated(torch.eye(4, dtype=torch.float64), vectors(1, 4)[0], "released", GAMMA)
    for _ in range(800):
        inverse = updated(inverse, torch.zeros(4, dtype=torch.float64), "released", GAMMA)
    torch.testing.assert_close(inverse, torch.eye(4, dtype=torch.float64))


def test_the_printed_formula_grows_along_the_vector_and_is_no_inverse() -> None:
    eye, v = torch.eye(5, dtype=torch.float64), vectors(1, 5)[0]
    found = updated(eye, v, "paper", GAMMA)
    q = float(v @ v)
    along = float(v @ found @ v) / q
    assert along == pytest.approx(GAMMA + (1 - GAMMA) * q / (GAMMA**2 * (1 + GAMMA * (1 - GAMMA) * q)))
    assert float(torch.linalg.eigvalsh(found)[0]) > 0
    inverse = torch.linalg.inv(GAMMA * eye + (1 - GAMMA) * torch.outer(v, v))
    assert along > float(v @ inverse @ v) / q


def test_the_stabiliser_blends_with_the_identity_where_an_entry_is_large() -> None:
    inverse = torch.tensor([[3.0, 1.0], [1.0, 0.5]])
    found = stabilised(inverse, 2.0, 0.9)
    assert found is not None
    torch.testing.assert_close(found, 0.9 * inverse + 0.1 * torch.eye(2))
    assert stabilised(inverse, 3.0, 0.9) is None
    torch.testing.assert_close(stabilised(inverse, 2.0, 0.0), torch.eye(2))


def test_factors_at_the_identity_leave_the_inner_optimiser_alone_to_the_bit() -> None:
    x, y = data()
    plain, ours = network(), network()
    never = MKOR(ours, sgd(), f=10**9, rescale=False)
    never.steps = 1  # past the step that is always due
    train(plain, sgd()(plain.parameters()), 5, x, y)
    train(ours, never, 5, x, y)
    assert equal(plain, ours)


def test_a_stabiliser_that_always_acts_and_starts_again_is_the_inner_optimiser_for_one_update_of_an_orthogonal_vector() -> None:
    """ζ = 0: the factor is I before each update, whatever it had been."""
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd(), f=1, rule="exact", eps=1e-6, zeta=0.0, factor_dtype="float32")
    train(model, optimiser, 4, x, y)
    collected = network()
    collected.load_state_dict(model.state_dict())
    watcher = MKOR(collected, sgd(0.0), f=1, rule="exact", eps=1e-6, zeta=0.0, factor_dtype="float32")
    train(model, optimiser, 1, x, y)
    train(collected, watcher, 1, x, y)
    for name, pair in optimiser.factors.items():
        for ours, alone in zip(pair, watcher.factors[name], strict=True):
            torch.testing.assert_close(ours, alone)


def test_rescaling_keeps_the_norm_and_a_descent_direction() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3, bias=False)
    optimiser = MKOR(model, sgd(0.0), f=1)
    x, y = data()
    for _ in range(5):
        F.mse_loss(model(x), y).backward()
        before = model.weight.grad.clone()  # type: ignore[union-attr]
        optimiser.step()
        after = model.weight.grad
        assert after is not None
        assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-4)
        assert float((after * before).sum()) > 0
        assert not torch.allclose(after, before, rtol=1e-3)
        optimiser.zero_grad()


def test_with_one_sample_exact_is_kfac() -> None:
    """The covariance of one sample has rank one, so that both keep the inverse of the same factor."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimiser = MKOR(model, sgd(0.0), f=1, rule="exact", eps=1e9, rescale=False, factor_dtype="float32")
    inputs, outputs = torch.eye(5), torch.eye(3)
    for x in torch.randn(6, 1, 4):
        y = model(x)
        y.retain_grad()
        y.square().sum().backward()
        a, g = F.pad(x[0], (0, 1), value=1.0), y.grad[0]
        inputs = GAMMA * inputs + (1 - GAMMA) * torch.outer(a, a)
        outputs = GAMMA * outputs + (1 - GAMMA) * torch.outer(g, g)
        whole = torch.cat([model.weight.grad, model.bias.grad.unsqueeze(1)], 1)  # type: ignore[list-item, union-attr]
        wanted = torch.linalg.inv(outputs) @ whole @ torch.linalg.inv(inputs)
        optimiser.step()
        torch.testing.assert_close(model.weight.grad, wanted[:, :4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.bias.grad, wanted[:, 4], rtol=1e-4, atol=1e-5)
        optimiser.zero_grad()


def test_the_clip_of_kfac_counts_each_layer_at_its_own_rate() -> None:
    found = []
    for still in ("rate", "gradient"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
        optimiser = KFAC(model, lr=0.1, kl_clip=1e-6)
        group = optimiser.param_groups[0]
        optimiser.param_groups.append({**group, "params": [group["params"].pop()], "lr": 0.0 if still == "rate" else 0.1})
        model(torch.randn(5, 6)).square().mean().backward()
        if still == "gradient":
            model[2].weight.grad = None
        optimiser.step()
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)


def test_a_pointwise_convolution_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)
    convolution = nn.Conv2d(6, 3, 1)
    convolution.load_state_dict({"weight": linear.weight.detach()[:, :, None, None], "bias": linear.bias.detach()})
    x, y = data()
    train(linear, MKOR(linear, sgd(), f=1), 6, x, y)
    train(nn.Sequential(convolution, nn.Flatten()), MKOR(convolution, sgd(), f=1), 6, x[:, :, None, None], y)
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(convolution.bias, linear.bias, rtol=1e-4, atol=1e-5)


def test_conv1d_of_transformers_is_a_linear_layer() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    linear, turned = nn.Linear(6, 3), pytorch_utils.Conv1D(3, 6)
    turned.load_state_dict({"weight": linear.weight.detach().T, "bias": linear.bias.detach()})
    x, y = data()
    train(linear, MKOR(linear, sgd(), f=1), 6, x, y)
    train(turned, MKOR(turned, sgd(), f=1), 6, x, y)
    torch.testing.assert_close(turned.weight.T, linear.weight, rtol=1e-4, atol=1e-5)


def test_two_halves_are_one_batch() -> None:
    x, y = data()
    whole, halves = network(), network()
    one = MKOR(whole, sgd(), f=1, factor_dtype="float32")
    two = MKOR(halves, sgd(), f=1, factor_dtype="float32", accumulation=2)
    for _ in range(5):
        F.mse_loss(whole(x), y).backward()
        one.step()
        one.zero_grad()
        for part in (slice(0, 6), slice(6, 12)):
            (F.mse_loss(halves(x[part]), y[part]) / 2).backward()
        two.step()
        two.zero_grad()
    assert equal(whole, halves, 1e-5)


def test_checkpointed_layers_are_counted_once() -> None:
    x, y = data()
    plain, kept = network(), network()
    train(plain, MKOR(plain, sgd(), f=1), 4, x, y)
    optimiser = MKOR(kept, sgd(), f=1)
    for reentrant in (False, True, False, True):
        out = torch.utils.checkpoint.checkpoint(kept, x.clone().requires_grad_(), use_reentrant=reentrant)
        F.mse_loss(out, y).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert equal(plain, kept, 1e-6)


def test_a_state_resumes_to_the_bit_through_a_file() -> None:
    x, y = data()
    through, stopped = network(), network()
    policy = {"window": 3, "tau": 0.5, "patience": 9}
    one = MKOR(through, sgd(), f=3, hybrid=HybridPolicy(**policy))  # type: ignore[arg-type]
    train(through, one, 9, x, y)
    two = MKOR(stopped, sgd(), f=3, hybrid=HybridPolicy(**policy))  # type: ignore[arg-type]
    train(stopped, two, 4, x, y)
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimiser": two.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = network(7)
    fresh.load_state_dict(saved["model"])
    three = MKOR(fresh, sgd(), f=3, hybrid=HybridPolicy(**policy))  # type: ignore[arg-type]
    three.load_state_dict(saved["optimiser"])
    train(fresh, three, 5, x, y)
    assert equal(through, fresh)


def test_states_of_others_are_refused_and_change_nothing() -> None:
    model = network()
    optimiser = MKOR(model, sgd())
    x, y = data()
    train(model, optimiser, 3, x, y)
    before = copy.deepcopy(optimiser.state_dict())
    other = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3))
    for wrong in (sgd()(model.parameters()).state_dict(), MKOR(other, sgd()).state_dict()):
        with pytest.raises(CheckpointError):
            optimiser.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="MKOR-H"):
        optimiser.load_state_dict(MKOR(network(), sgd(), hybrid=HybridPolicy()).state_dict())
    after = optimiser.state_dict()
    assert str(after) == str(before)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_whole_and_said(wrong: float) -> None:
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd(), f=1)
    train(model, optimiser, 2, x, y)
    before, factors = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.factors)
    F.mse_loss(model(x), y).backward()
    model[0].weight.grad[0, 0] = wrong  # type: ignore[index]
    with pytest.warns(RuntimeWarning, match="skips this step"):
        optimiser.step()
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(torch.equal(a, b) for k in factors for a, b in zip(factors[k], optimiser.factors[k], strict=True))
    assert (optimiser.skipped, optimiser.steps) == (1, 2)
    optimiser.zero_grad()
    assert train(model, optimiser, 1, x, y)[0] > 0
    assert optimiser.steps == 3


def test_what_is_left_out_is_named_and_still_trained() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(7, 6), "head": nn.Linear(6, 7, bias=False), "wide": nn.Linear(6, 40),
                           "grouped": nn.Conv2d(4, 4, 1, groups=2), "kept": nn.Linear(6, 6)})  # fmt: skip
    model["head"].weight = model["table"].weight
    optimiser = MKOR(model, sgd(), widest=16, f=1)
    assert [layer.name for layer in optimiser.layers] == ["kept"]
    assert optimiser.left_out.keys() == {"table", "head", "wide", "grouped"}
    assert "shared" in optimiser.left_out["head"]
    assert "wider than 16" in optimiser.left_out["wide"]
    before = model["table"].weight.detach().clone()
    model["head"](model["kept"](model["table"](torch.arange(7)))).square().mean().backward()
    optimiser.step()
    assert not torch.equal(before, model["table"].weight)
    with pytest.raises(ShapeError, match="no layer"):
        MKOR(network(), sgd(), skip=["nowhere"])
    assert MKOR(network(), sgd(), skip=["0"]).left_out["0"] == "left out by the caller"
    sparse = MKOR(nn.Sequential(nn.Embedding(7, 6, sparse=True), nn.Linear(6, 6)), sgd())
    assert "sparse=False" in sparse.left_out["0"]


def test_schedulers_groups_and_closures_see_one_optimiser() -> None:
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd(0.1), f=1)
    assert isinstance(optimiser, torch.optim.Optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    first = float(optimiser.step(closure).detach())
    schedule.step()
    assert optimiser.inner.param_groups[0]["lr"] == pytest.approx(0.05)
    assert float(optimiser.step(closure).detach()) < first
    added = nn.Parameter(torch.zeros(3))
    optimiser.add_param_group({"params": [added], "lr": 1.0})
    assert optimiser.inner.param_groups[-1]["params"][0] is added
    assert optimiser.param_groups is optimiser.inner.param_groups


def test_hybrid_switches_when_the_loss_stalls_and_keeps_the_inner_state() -> None:
    policy = HybridPolicy(beta=0.0, window=5, tau=0.5, patience=2)
    falling = [policy.observe(10.0 - 0.5 * step) for step in range(15)]
    assert not any(falling)
    stalled = [policy.observe(3.0) for _ in range(20)]
    assert stalled.index(True) == 9  # the second window that falls too slowly
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd(), f=1, hybrid=HybridPolicy(switch_at=3))
    for _ in range(5):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimiser.step()
        optimiser.observe(float(loss.detach()))
        optimiser.zero_grad()
    assert optimiser.switched == 3
    assert not optimiser.factors
    momenta = sum("momentum_buffer" in entries for entries in optimiser.state.values())
    assert momenta == len(list(model.parameters()))
    again = MKOR(network(), sgd(), hybrid=HybridPolicy(switch_at=3))
    again.load_state_dict(optimiser.state_dict())
    assert again.switched == 3
    assert not again.layers


def test_detached_leaves_no_hooks() -> None:
    model = network()
    optimiser = MKOR(model, sgd())
    assert all(module._forward_hooks for module in model if isinstance(module, nn.Linear))
    optimiser.detach()
    assert not any(module._forward_hooks for module in model)


@pytest.mark.parametrize("rule", RULES)
def test_bytes_are_those_of_factors_and_inner_state(rule: Any) -> None:
    model = network()
    optimiser = MKOR(model, sgd(), rule=rule)
    sides = [(8, 7), (5, 8), (3, 6)]
    assert optimiser.state_bytes() == sum(2 * (o * o + i * i) for o, i in sides)
    x, y = data()
    train(model, optimiser, 1, x, y)
    assert optimiser.state_bytes() == sum(2 * (o * o + i * i) for o, i in sides) + 4 * sum(p.numel() for p in model.parameters())


def test_eval_and_frozen_passes_leave_nothing() -> None:
    model = network()
    optimiser = MKOR(model, sgd(), f=1)
    x, _ = data()
    with torch.no_grad():
        model(x)
    assert all(layer.inputs.count == 0 for layer in optimiser.layers)


@pytest.mark.parametrize(
    "wrong",
    [{"f": 0}, {"rule": "other"}, {"gamma": 1.0}, {"zeta": 2.0}, {"factor_dtype": "int8"}, {"accumulation": 0}],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises((ShapeError, UnknownNameError)):
        MKOR(network(), sgd(), **wrong)


def both(model: nn.Module) -> list[Any]:
    """MKOR and K-FAC, which keep what passes leave behind."""
    return [MKOR(model, sgd(), f=1), KFAC(model, lr=0.05, f=1)]


@pytest.mark.parametrize("which", [0, 1], ids=["mkor", "kfac"])
def test_a_pass_whose_step_the_caller_leaves_out_leaves_nothing(which: int) -> None:
    x, y = data()
    plain, passed = network(), network()
    one, two = both(plain)[which], both(passed)[which]
    train(plain, one, 2, x, y)
    train(passed, two, 2, x, y)
    (F.mse_loss(passed(x), y) * float("nan")).backward()
    two.zero_grad()
    for model, optimiser in ((plain, one), (passed, two)):
        loss = F.mse_loss(model(x), y)
        optimiser.zero_grad()  # between the passes: what the backward pass leaves behind is whole all the same
        loss.backward()
        optimiser.step()
        assert all(layer.outputs.count == 0 for layer in optimiser.layers)
    assert equal(plain, passed)


def test_statistics_are_whole_where_gradients_are_cleared_between_the_passes() -> None:
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd(), f=1)
    loss = F.mse_loss(model(x), y)
    optimiser.zero_grad()
    loss.backward()
    assert all(layer.inputs.count == layer.outputs.count == 1 for layer in optimiser.layers)


@pytest.mark.parametrize("which", [0, 1], ids=["mkor", "kfac"])
def test_under_a_scaler_the_factors_are_those_of_the_loss_itself(which: int) -> None:
    x, y = data()
    plain, scaled = network(), network()
    one, two = both(plain)[which], both(scaled)[which]
    train(plain, one, 3, x, y)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        two.loss_scale = scaler.get_scale()
        scaler.scale(F.mse_loss(scaled(x), y)).backward()
        scaler.step(two)
        scaler.update()
        two.zero_grad()
    assert equal(plain, scaled)


def test_after_the_switch_steps_are_skipped_whole_too() -> None:
    x, y = data()
    model = network()
    optimiser = MKOR(model, sgd())
    optimiser.detach()
    before = copy.deepcopy(model.state_dict())
    (F.mse_loss(model(x), y) * float("nan")).backward()
    with pytest.warns(RuntimeWarning, match="skips this step"):
        optimiser.step()
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert (optimiser.skipped, optimiser.steps) == (1, 0)
