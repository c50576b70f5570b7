"""The training loop: resumes to the bit, stops on what is not finite, refuses another run's progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.bench.fit import fit, rate
from instar.bench.seeds import derive, initialising, stream
from instar.errors import CheckpointError, DivergedError, ShapeError


def model() -> nn.Module:
    with initialising(0):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(16), nn.Linear(16, 1))


def batch(index: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 8, generator=stream(0, f"x/{index}"))
    return x, x[:, :1]


def loss(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return (net(data[0]) - data[1]).square().mean()


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def train(net: nn.Module, **changes: Any) -> nn.Module:
    fit(net, batch, loss, **{"steps": 40, "lr": 1e-2, **changes})
    return net


@pytest.mark.parametrize("stop", [1, 7, 39, 40])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path: Path, stop: int, accumulate: int) -> None:
    whole = train(model(), accumulate=accumulate)
    folder = tmp_path / "progress"
    train(model(), accumulate=accumulate, checkpoint=folder, monitor=lambda step, _: step == stop)
    resumed: list[int] = []
    again = train(model(), accumulate=accumulate, checkpoint=folder, monitor=lambda step, _: resumed.append(step))
    assert resumed == list(range(stop + 1, 41))
    assert same(whole, again)


def test_training_learns_and_ignores_the_global_generator() -> None:
    losses: list[float] = []
    first = train(model(), steps=200, monitor=lambda _, value: losses.append(value))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = train(model(), steps=200)
    assert torch.equal(before, torch.get_rng_state())
    assert same(first, second)


def test_accumulation_is_a_larger_batch() -> None:
    """Two micro-batches in a step are one batch of both, up to rounding."""
    plain = nn.Linear(8, 1)
    joined = nn.Linear(8, 1)
    joined.load_state_dict(plain.state_dict())
    fit(plain, batch, loss, steps=5, lr=1e-2, accumulate=2)
    fit(
        joined,
        lambda i: tuple(torch.cat(pair) for pair in zip(batch(2 * i), batch(2 * i + 1), strict=True)),  # type: ignore[misc]
        loss,
        steps=5,
        lr=1e-2,
    )
    torch.testing.assert_close(plain.weight, joined.weight)


def test_complex_parameters_learn_too() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :1].cfloat() * self.factor).imag

    losses: list[float] = []
    fit(Turn(), batch, loss, steps=150, lr=5e-2, monitor=lambda _, value: losses.append(value))
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_keeps_weights_in_float32() -> None:
    net = train(model(), precision="bf16", steps=5)
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    def broken(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        return loss(net, data) * float("nan")

    with pytest.raises(DivergedError, match="step 1 of 5"):
        fit(model(), batch, broken, steps=5, lr=1e-2)


def test_another_run_s_progress_is_refused(tmp_path: Path) -> None:
    train(model(), checkpoint=tmp_path, monitor=lambda step, _: step == 3)
    with pytest.raises(CheckpointError, match="other settings"):
        train(model(), checkpoint=tmp_path, lr=2e-2)
    with pytest.raises(CheckpointError):
        fit(nn.Linear(3, 3), batch, loss, steps=40, lr=1e-2, checkpoint=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError):
        train(model(), checkpoint=tmp_path)


def test_bad_settings() -> None:
    for bad in ({"steps": -1}, {"lr": 0.0}, {"accumulate": 0}, {"precision": "fp8"}):
        with pytest.raises(ShapeError):
            train(model(), **bad)


def test_the_schedule_rises_and_falls() -> None:
    values = [rate(s, 1000, "cosine") for s in range(1000)]
    assert max(values) == pytest.approx(1.0, abs=1e-3)
    assert values[0] == pytest.approx(0.01)
    assert values[-1] == pytest.approx(0.1, abs=1e-3)
    assert rate(500, 1000, "constant") == 1.0


def test_streams_are_named_and_apart() -> None:
    assert derive(0, "a") == derive(0, "a")
    assert len({derive(s, n) for s in range(10) for n in "abc"}) == 30
