"""Patches come back as they were, energies are each image's own, and every denoiser learns to remove noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.bench import run
from instar.errors import ShapeError
from instar.inference.ddim_denoiser import DdimDenoiser
from instar.inference.descent import probe
from instar.inference.diffusion import kept, noised
from instar.inference.dit import PatchTransformer, grid
from instar.inference.ebt_denoiser import EbtDenoiser
from instar.problems.denoise import DenoiseProblem


def test_patches_are_squares_of_the_image_and_come_back() -> None:
    model = PatchTransformer(6, 3, 16, 1, 2, 9)
    images = torch.randn(2, 6, 6)
    patches = model.cut(images)
    assert torch.equal(patches[0, 1], images[0, :3, 3:].flatten())
    assert torch.equal(model.join(patches), images)
    assert len(torch.unique(grid(4, 16), dim=0)) == 16  # every place is another


def test_energies_are_images_own_and_second_derivatives_are_right() -> None:
    torch.manual_seed(0)
    model = EbtDenoiser(16, size=4, depth=1, heads=2, alpha=20.0).double()
    x, target = model.example(3)
    probe(model.energy, x)
    assert model.energy(x).shape == (3,)
    weight = model.transformer.enter.weight
    (found,) = torch.autograd.grad(model.loss(x, target), weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-5 * direction)
        values.append(float(model.loss(x, target).detach()))
        with torch.no_grad():
            weight.sub_(sign * 1e-5 * direction)
    assert float((found * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_more_steps_are_the_output_fed_back() -> None:
    torch.manual_seed(0)
    model = EbtDenoiser(16, heads=2, alpha=20.0)
    x, _ = model.example(3)
    once, _ = model.predict(x, steps=1)
    assert torch.equal(model.predict(once, steps=1)[0], model.predict(x, steps=2)[0])
    _, trace = model.think(x, steps=6, accept=True)
    assert trace.energies is not None
    assert bool((trace.energies.diff(dim=0) <= 0).all())


def test_noise_follows_the_schedule() -> None:
    assert float(kept(0)) == 1
    assert float(kept(1)) == pytest.approx(1 - 1e-4)
    assert float(kept(100)) == pytest.approx(0.8951, abs=2e-3)
    x = torch.randn(4, 8, 8)
    assert torch.equal(noised(x, 0, torch.randn_like(x)), x)
    times = torch.tensor([0, 100, 200, 1000])
    assert torch.allclose(noised(x, times, torch.zeros_like(x)), kept(times).float().sqrt().view(-1, 1, 1) * x)


def test_ddim_with_the_true_noise_gives_the_clean_image() -> None:
    model = DdimDenoiser(16, heads=2, passes=7)
    clean, noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x = noised(clean, 100, noise)
    model.epsilon = lambda *_: noise  # type: ignore[method-assign]
    assert torch.allclose(model.predict(x, steps=1)[0], clean, atol=1e-9)


@pytest.mark.parametrize(
    ("slug", "arguments"), [("ebt_denoiser", {"alpha": 300.0}), ("recursed_denoiser", {}), ("ddim_denoiser", {"passes": 10})]
)
def test_denoisers_learn(slug: str, arguments: dict[str, Any]) -> None:
    problem = DenoiseProblem(width=32, depth=1, batch=32, lr=2e-3)
    data = problem.load(0)
    model = run.lift(problem, slug, arguments, data, 0)
    before = problem.evaluate(model, data.test)
    problem.fit(model, data.train, steps=60, seed=0)
    after = problem.evaluate(model, data.test)
    assert len(after["error@t200x3"].totals) == len(data.test)
    assert after["error@t100x1"].value < before["error@t100x1"].value
    assert after["error@t100x1"].value < 0.105  # noise alone is (1 − √ᾱ)² x² + 1 − ᾱ, about 0.106


def test_settings_that_make_no_sense() -> None:
    for cls, wrong in ((EbtDenoiser, {"patch": 3}), (EbtDenoiser, {"steps": 0}), (DdimDenoiser, {"passes": 200})):
        with pytest.raises(ShapeError):
            cls(16, **{"heads": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="received"):
        EbtDenoiser(16, heads=2).predict(torch.zeros(2, 7, 7), steps=1)
