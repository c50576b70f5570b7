"""Two streams equal position by position, the cache equals none, and recipes differentiate what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.inference.descent import slope
from instar.inference.ebt import Ebt
from instar.inference.ebwm import Ebwm
from instar.inference.energy_transformer import EnergyTransformer
from instar.inference.thinker import Thinker

S1 = {"conditioning": "time_embed", "landscapes": 2}
KINDS: list[dict[str, Any]] = [
    {},
    S1,
    {"conditioning": "adaln", "landscapes": 2},
    {"conditioning": "time_embed", "norm": "dyt", "activation": "gelu"},
    {"norm": "layer", "activation": "tanh", "hidden": 24},
    {"norm": "none", "activation": "relu"},
]
S2: dict[str, Any] = {
    "landscapes": 1,
    "alpha": 5.0,
    "learn_alpha": False,
    "detach": False,
    "truncate": True,
    "last_only": True,
}


def made(seed: int = 0, **arguments: Any) -> EnergyTransformer:
    torch.manual_seed(seed)
    return EnergyTransformer(16, 2, 2, **arguments).double()


def ebt(seed: int = 0, **arguments: Any) -> Ebt:
    torch.manual_seed(seed)
    return Ebt(16, **{"vocabulary": 11, "heads": 2, "alpha": 20.0, **arguments}).double()


def streams(S: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    context, candidates = torch.randn(2, 2, S, 16, generator=generator, dtype=torch.float64)
    return context.requires_grad_(), candidates.requires_grad_()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fast_is_the_loop_over_positions_in_values_and_gradients(kind: dict[str, Any]) -> None:
    model = made(**kind)
    context, candidates = streams()
    landscape = model.landscapes - 1
    weights = torch.randn(2, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    leaves = [context, candidates, *model.parameters()]
    found = []
    for form in (model.forward, model.reference):
        energies = form(context, candidates, landscape)
        found.append((energies, torch.autograd.grad((weights * energies).sum(), leaves, allow_unused=True)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-11)


def test_an_energy_knows_its_own_candidate_and_what_was_observed_before_it() -> None:
    model = made(**S1)
    context, candidates = streams()
    energies = model(context, candidates, 1)
    for i in range(6):
        seen, own = torch.autograd.grad(energies[:, i].sum(), (context, candidates), retain_graph=True)
        assert bool((seen[:, i + 1 :] == 0).all())
        assert bool((seen[:, : i + 1].abs().sum(-1) > 0).all())
        others = [j for j in range(6) if j != i]
        assert bool((own[:, others] == 0).all())
        assert bool((own[:, i].abs().sum(-1) > 0).all())
    observed = model.observe(context)
    assert torch.autograd.grad(observed.layers[-1][0].sum(), candidates, allow_unused=True)[0] is None


def test_the_sum_gives_every_position_its_own_gradient() -> None:
    model = made()
    context, candidates = streams()
    observed = model.observe(context)
    found = slope(lambda c: model.energies(c, observed), candidates).gradient
    for i in range(6):
        alone = slope(lambda c, i=i: model.energies(c, observed, first=i), candidates[:, i : i + 1]).gradient  # type: ignore[misc]
        assert torch.allclose(found[:, i : i + 1], alone, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_observing_in_pieces_is_observing_at_once(kind: dict[str, Any]) -> None:
    model = made(**kind)
    context, candidates = streams(7)
    landscape = model.landscapes - 1
    whole = model(context, candidates, landscape)
    past = None
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        past = model.observe(context[:, begin:end], landscape, past)
        assert torch.allclose(model.energies(candidates[:, begin:end], past, first=begin), whole[:, begin:end], atol=1e-12)


@pytest.mark.parametrize("arguments", [S1, S2, {"conditioning": "adaln", "tied": True}, {"step_space": "logit", "start": "last"}])
def test_thinking_over_the_cache_is_thinking_without_one(arguments: dict[str, Any]) -> None:
    model = ebt(**arguments)
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))
    start = model.first(tokens, torch.Generator().manual_seed(2))

    def uncached(landscape: int) -> Any:
        def energy(state: Tensor) -> Tensor:
            p = state if model.step_space == "prob" else model.distribution(state)
            return model.transformer(model.embedding(tokens), model.embed(p), landscape)

        return energy

    thinker = Thinker(steps=4, step_size=float(model.step_size.value.detach()))
    wanted, trace = thinker([uncached(n) for n in range(model.transformer.landscapes)], start, point=model.point)
    found, own = model.predict(tokens, steps=4, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(found, wanted, atol=1e-11)
    assert trace.energies is not None
    assert own.energies is not None
    assert torch.allclose(own.energies, trace.energies, atol=1e-11)


def test_generation_reads_the_past_once_and_gives_what_whole_predictions_give() -> None:
    model = ebt(**S1, start="zeros")
    prompts = torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(1))
    found, row = model.generate(prompts, max_new_tokens=5, steps=3), prompts
    for _ in range(5):
        row = torch.cat([row, model.predict(row, steps=3)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(found, row[:, 4:])
    assert model.generate(prompts[:, :1], max_new_tokens=2).shape == (2, 2)
    assert model.generate(prompts, max_new_tokens=0).shape == (2, 0)
    with pytest.raises(ShapeError, match="temperature"):
        model.generate(prompts, max_new_tokens=2, temperature=-1.0)


def test_the_trained_number_of_steps_is_what_the_loss_sees() -> None:
    model = ebt(**S1).eval()
    tokens, target = model.example(3)
    torch.manual_seed(5)
    loss = model.loss(tokens, target)
    torch.manual_seed(5)
    start = torch.randn(3, 10, 11, dtype=torch.float64)
    losses = []
    for steps in (1, 2):
        model.first = lambda *_: start  # type: ignore[method-assign]
        logits, _ = model.think(tokens, steps=steps)
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))
    assert torch.allclose(loss, torch.stack(losses).mean(), atol=1e-12)


def gradients(model: Ebt, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_the_gradient_of_a_detached_loop_is_the_sum_of_single_steps() -> None:
    model = ebt(**S1).train()
    tokens, target = model.example(2)
    torch.manual_seed(5)
    whole = gradients(model, model.loss(tokens, target))
    torch.manual_seed(5)
    z = model.first(tokens)
    total = [torch.zeros_like(g) for g in whole]
    for number in range(2):
        energy = model.energy(model.observe(tokens, number))
        now = slope(energy, model.point(z).detach().requires_grad_(), create_graph=True)
        after = now.point - model.step_size.value * now.gradient
        loss = torch.nn.functional.cross_entropy(after.flatten(0, 1), target.flatten()) / 2
        total = [a + b for a, b in zip(total, gradients(model, loss), strict=True)]
        z = after.detach()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(whole, total, strict=True))


def test_the_gradient_of_system_two_is_that_of_the_last_step() -> None:
    model = ebt(**S2, steps=3).train()
    tokens, target = model.example(2)
    torch.manual_seed(5)
    whole = gradients(model, model.loss(tokens, target))
    torch.manual_seed(5)
    z = model.first(tokens)
    for _ in range(2):
        now = slope(model.energy(model.observe(tokens)), model.point(z))
        z = (now.point - 5.0 * now.gradient).detach()
    now = slope(model.energy(model.observe(tokens)), model.point(z).requires_grad_(), create_graph=True)
    loss = torch.nn.functional.cross_entropy((now.point - 5.0 * now.gradient).flatten(0, 1), target.flatten())
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(whole, gradients(model, loss), strict=True))


@pytest.mark.parametrize("arguments", [S1, {**S2, "truncate": False}, {"step_space": "logit", "detach": False}])
def test_the_second_order_gradient_is_that_of_finite_differences(arguments: dict[str, Any]) -> None:
    """Of one step's loss for detached loops: the later state is a constant there."""
    model = ebt(**{**arguments, "steps": 1 if "detach" not in arguments else 2}).train()
    tokens, target = model.example(2)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model.loss(tokens, target)

    generator = torch.Generator().manual_seed(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    found = sum(float((g * d).sum()) for g, d in zip(gradients(model, loss()), direction, strict=True))
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * h * d)
        values.append(float(loss().detach()))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * h * d)
    assert found == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


def test_a_zero_head_leaves_the_start() -> None:
    tokens = torch.randint(11, (2, 5))
    for space, wanted in (("logit", lambda z: z), ("prob", lambda z: z.softmax(-1).softmax(-1))):
        model = ebt(conditioning="adaln_zero", step_space=space)
        z = model.first(tokens, torch.Generator().manual_seed(0))
        found, trace = model.predict(tokens, steps=2, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(found, wanted(z) if space == "logit" else z.softmax(-1).softmax(-1), atol=1e-12)
        assert trace.energies is not None
        assert float(trace.energies.abs().max()) == 0


def test_the_buffer_forgets_the_oldest_and_is_not_used_in_evaluation() -> None:
    model = ebt(**S2, buffer=6)
    tokens, target = model.example(4)
    for _ in range(3):
        model.train().loss(tokens, target).backward()
    assert len(model.replay.rows) == 6
    assert not any(column.requires_grad for row in model.replay.rows for column in row)
    before = [row[2].clone() for row in model.replay.rows]
    model.eval().loss(tokens, target)
    assert all(torch.equal(a, row[2]) for a, row in zip(before, model.replay.rows, strict=True))
    assert not any("replay" in name for name in model.state_dict())
    model.train().loss(tokens[:, :7], target[:, :7])  # rows of another length are not drawn


def test_the_step_size_has_a_rate_of_its_own() -> None:
    model = ebt(alpha=50.0)
    own = model.groups(1e-3)[-1]
    assert own["params"] == [model.step_size.alpha]
    assert own["lr"] == pytest.approx(0.15)
    assert own["weight_decay"] == 0
    assert sum(len(group["params"]) for group in model.groups(1e-3)) == len(list(model.parameters()))
    with torch.no_grad():
        model.step_size.alpha.fill_(-3.0)
    assert float(model.step_size.value.detach()) == pytest.approx(1e-4)
    sizes = ebt(**S2, random_alpha=2.0).step_size((50, 40), random=True)
    assert 2.5 <= float(sizes.min()) < 3
    assert 9 < float(sizes.max()) <= 10


def test_options_of_the_loss() -> None:
    tokens, target = ebt().example(2)
    target = target.clone()
    target[:, 3:] = -100
    for options in ({"label_smoothing": 0.2}, {"contrastive": 0.5}, {"clamp_gradient": 1e-4}, {"clamp_state": 0.05}):
        losses = []
        for arguments in ({}, options):
            model = ebt(**{"landscapes": 2, **arguments})
            torch.manual_seed(0)
            losses.append(model.loss(tokens, target))
        losses[1].backward()
        assert float(losses[0].detach()) != float(losses[1].detach())


def test_step_sizes_of_inference_and_settings_that_make_no_sense() -> None:
    model = ebt(**S1)
    tokens = torch.randint(11, (1, 4))
    model.start = "zeros"
    half, ten = (model.think(tokens, steps=1, step_size=s)[0] for s in (0.5, 10.0))
    assert torch.allclose(half, ten, atol=1e-12)  # half of 20 is 10
    for wrong in (
        {"steps": 0},
        {"alpha": 0.0},
        {"norm": "batch"},
        {"activation": "no"},
        {"conditioning": "none", "landscapes": 2},
    ):
        with pytest.raises(ShapeError):
            ebt(**wrong)
    with pytest.raises(ShapeError, match="integer tokens"):
        model.predict(torch.rand(1, 4), steps=1)
    with pytest.raises(ShapeError, match="landscapes"):
        model.observe(tokens, 2)


@pytest.mark.parametrize("start", ["zeros", "last"])
def test_several_samples_need_starts_that_differ(start: Any) -> None:
    tokens, states = torch.randint(11, (1, 4)), torch.randn(1, 4, 3)
    made_of: list[tuple[Any, Tensor]] = [(ebt(start=start), tokens), (Ebwm(8, heads=2, inputs=3, start=start), states)]
    for model, x in made_of:
        with pytest.raises(ShapeError, match="all the same"):
            model.think(x, steps=1, samples=3)
        _, trace = model.think(x, steps=1, samples=3, noise=0.1)
        assert trace.sampled is not None
        assert len(trace.sampled[:, 0, 0].unique()) == 3


def test_logits_are_of_the_distribution_that_was_trained() -> None:
    """τ divides the state in the loss and in what is given."""
    warm, x = ebt(temperature=2.0, start="zeros"), torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(warm.predict(x, steps=3)[0].softmax(-1), warm.distribution(2.0 * warm.predict(x, steps=3)[0]))
    last = ebt(temperature=2.0, start="last").predict(x, steps=0)[0]
    torch.testing.assert_close(last.logsumexp(-1), torch.zeros_like(last[..., 0]), atol=1e-6, rtol=0)


def test_rows_of_another_length_are_not_drawn_from_the_buffer() -> None:
    model = ebt(buffer=8, **S2)
    model.train()
    for length in (6, 4, 6, 5):
        x = torch.randint(11, (3, length), generator=torch.Generator().manual_seed(length))
        assert bool(model.loss(x, x).isfinite())
    drawn = model.replay.draw(8, torch.Size([6]))
    assert drawn is not None
    assert drawn[0].shape[1] == 6
    assert model.replay.draw(8, torch.Size([7])) is None
