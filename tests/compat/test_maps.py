"""Maps against closed forms of others, known rotations, and real features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat import pairs as pairing
from instar.compat import ridge, training
from instar.compat.fitting import Moments
from instar.compat.low_rank_affine import LowRankAffine
from instar.compat.no_map import NoMap
from instar.compat.procrustes import Procrustes, nearest
from instar.compat.residual_mlp import ResidualMLP
from instar.compat.ridge import Ridge
from instar.errors import DataError, ShapeError
from instar.interfaces import CompatibleHead, Pairs


def drawn(items: int = 300, new_dim: int = 20, old_dim: int = 14, noise: float = 0.1, seed: int = 0) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    new = torch.randn(items, new_dim, generator=draw) + 1.0
    old = new @ torch.randn(new_dim, old_dim, generator=draw) + noise * torch.randn(items, old_dim, generator=draw) - 0.5
    return pairing.of(old, new)


def orthonormal(rows: int, columns: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=draw, dtype=torch.float64)).Q
    return tall if rows >= columns else tall.T


def loss(head: CompatibleHead, pairs: Pairs) -> float:
    with torch.no_grad():
        return float((head.compatible(pairs.new) - pairs.old).double().square().sum(1).mean())


@pytest.fixture(scope="module")
def digits() -> tuple[Pairs, Pairs]:
    """Real images by two encoders: old, 24 principal components; new, averages of 2 × 2 pixels and edges. Two disjoint halves."""
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed (extra text)")
    images, classes = sklearn.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    flat = images.reshape(len(images), -1)
    old = (flat - flat.mean(0)) @ np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:24].T
    coarse = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(len(images), -1)
    new = np.concatenate([coarse, np.abs(np.diff(images, axis=1)).mean(2), np.abs(np.diff(images, axis=2)).mean(1)], 1)
    order = np.random.default_rng(0).permutation(len(images))
    first, second = (pairing.of(old[at], new[at], classes[at]) for at in (order[:900], order[900:]))
    return first, second


def recall(head: CompatibleHead, pairs: Pairs, k: int = 10) -> float:
    """Share of the k nearest old vectors of an old one that its projection finds too."""
    with torch.no_grad():
        scores, real = head.project(pairs.new, 0) @ pairs.old.T, pairs.old @ pairs.old.T
    for table in (scores, real):
        table.fill_diagonal_(-torch.inf)
    found, wanted = scores.topk(k).indices, real.topk(k).indices
    return float((found[:, :, None] == wanted[:, None]).any(2).float().mean())


def test_no_map_pads_and_cuts() -> None:
    x = F.normalize(torch.randn(5, 6), dim=1)
    assert torch.equal(NoMap(6, 6).compatible(x), F.normalize(x, dim=1))
    assert torch.equal(NoMap(6, 9).compatible(x)[:, 6:], torch.zeros(5, 3))
    assert torch.allclose(NoMap(6, 4).project(x, 0), F.normalize(x[:, :4], dim=1))
    with pytest.raises(DataError, match="without a direction"):
        NoMap(6, 4).project(F.pad(torch.ones(1, 2), (4, 0)), 0)  # nothing is left of it


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_without_penalty_is_least_squares(intercept: bool) -> None:
    pairs = drawn()
    head = Ridge(20, 14, intercept=intercept, penalty=0.0)
    head.fit(pairs)
    x, y = pairs.new.double().numpy(), pairs.old.double().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], 1) if intercept else x
    solved = np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.allclose(head.weight.numpy().T, solved[:20], atol=1e-5)
    assert np.allclose(head.bias.numpy(), solved[20] if intercept else 0.0, atol=1e-5)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_ridge_is_that_of_scikit_learn(intercept: bool, penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed (extra text)")
    pairs = drawn()
    head = Ridge(20, 14, intercept=intercept, penalty=penalty)
    head.fit(pairs)
    peer = linear_model.Ridge(alpha=penalty * len(pairs.old), fit_intercept=intercept, solver="svd")
    peer.fit(pairs.new.double().numpy(), pairs.old.double().numpy())
    assert np.allclose(head.weight.numpy(), peer.coef_, atol=1e-6)
    assert np.allclose(head.bias.numpy(), peer.intercept_, atol=1e-6)


@pytest.mark.parametrize(("items", "noise"), [(15, 0.3), (40, 3.0), (300, 0.1)])
@pytest.mark.parametrize("intercept", [True, False])
def test_cross_validation_is_its_definition(items: int, noise: float, intercept: bool) -> None:
    """The penalty that is chosen minimises ‖(I − H) Y‖² / (N − tr H)², written out with the N × N matrix H."""
    pairs = drawn(items, noise=noise)
    moments = Moments.of(pairs, centred=intercept)
    x, y = pairs.new.double() - moments.mean_x, pairs.old.double() - moments.mean_y

    def score(penalty: float) -> float:
        hat = x @ torch.linalg.solve(x.T @ x / items + penalty * torch.eye(20, dtype=torch.float64), x.T / items)
        left = items - float(hat.trace()) - intercept
        return float((y - hat @ y).square().sum()) / left**2

    grid = [p for p in ridge.GRID if p >= 1e-6]  # below, the definition itself is lost in rounding
    values, basis = torch.linalg.eigh(moments.xx)
    chosen = ridge.cross_validated(moments, values.clamp(min=0), moments.yx @ basis, grid)
    assert score(chosen) == pytest.approx(min(map(score, grid)), rel=1e-6)


def test_ridge_takes_the_penalty_that_noise_asks_for() -> None:
    chosen = []
    for noise in (0.01, 10.0):
        moments = Moments.of(drawn(60, noise=noise), centred=True)
        values, basis = torch.linalg.eigh(moments.xx)
        chosen.append(ridge.cross_validated(moments, values.clamp(min=0), moments.yx @ basis, ridge.GRID))
    assert chosen[0] < chosen[1] / 10


@pytest.mark.parametrize(("new_dim", "old_dim"), [(12, 12), (12, 20)])
@pytest.mark.parametrize("scale", ["none", "one", "diagonal"])
@pytest.mark.parametrize("centre", [True, False])
def test_procrustes_recovers_a_known_rotation(new_dim: int, old_dim: int, scale: str, centre: bool) -> None:
    new = F.normalize(torch.randn(200, new_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    rotation = orthonormal(old_dim, new_dim)
    head = Procrustes(new_dim, old_dim, scale=scale, centre=centre)  # type: ignore[arg-type]
    head.fit(pairing.of(new @ rotation.T, new))
    assert torch.allclose(head.weight.double(), rotation, atol=1e-6)
    assert torch.allclose(head.bias, torch.zeros(old_dim), atol=1e-6)


def test_procrustes_is_that_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    pairs = drawn(old_dim=20)
    head = Procrustes(20, 20, centre=False, scale="none")
    head.fit(pairs)
    peer = linalg.orthogonal_procrustes(pairs.new.double().numpy(), pairs.old.double().numpy())[0]
    assert np.allclose(head.weight.numpy(), peer.T, atol=1e-6)


@pytest.mark.parametrize(("new_dim", "old_dim"), [(9, 9), (6, 9), (9, 6)])
def test_procrustes_is_the_best_of_its_kind(new_dim: int, old_dim: int) -> None:
    """No other matrix with orthonormal rows or columns has a larger inner product with the pairs, near it or far."""
    cross = Moments.of(drawn(50, new_dim, old_dim), centred=True).yx
    best = nearest(cross)
    worst = min(best.shape)
    gram = best @ best.T if old_dim <= new_dim else best.T @ best
    assert torch.allclose(gram, torch.eye(worst, dtype=torch.float64), atol=1e-12)
    draw = torch.Generator().manual_seed(3)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(10):
            other = nearest(best + size * torch.randn(old_dim, new_dim, generator=draw, dtype=torch.float64))
            assert float((other * cross).sum()) <= float((best * cross).sum()) + 1e-12


def test_procrustes_leaves_alone_what_few_pairs_do_not_say() -> None:
    """Three pairs in the first coordinates of 12: the others stay where no map has them."""
    new = F.pad(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), (0, 9))
    head = Procrustes(12, 12, centre=False, scale="none")
    head.fit(pairing.of(new.roll(1, 1), new))
    assert torch.allclose(head.weight[4:, 4:], torch.eye(8), atol=1e-6)


def test_scales_are_those_of_least_squares() -> None:
    pairs = drawn(old_dim=20, noise=2.0)
    found = {}
    for scale in ("none", "one", "diagonal"):
        head = Procrustes(20, 20, scale=scale)  # type: ignore[arg-type]
        head.fit(pairs)
        found[scale] = loss(head, pairs)
        for change in (0.99, 1.01):
            other = Procrustes(20, 20)
            other.load_state_dict(head.state_dict())
            mean = pairs.new.mean(0)
            other.bias.add_((1 - change) * head.scales * (head.weight @ mean))
            other.scales.mul_(change)
            assert scale == "none" or loss(other, pairs) >= found[scale] - 1e-9
    assert found["diagonal"] <= found["one"] <= found["none"]


@pytest.mark.parametrize("rank", [14, 64])
def test_full_rank_is_ridge(rank: int) -> None:
    pairs = drawn()
    head, whole = LowRankAffine(20, 14, rank=rank), Ridge(20, 14)
    head.fit(pairs)
    whole.fit(pairs)
    assert torch.allclose(head.up @ head.down, whole.weight, atol=1e-5)
    assert torch.allclose(head.bias, whole.bias, atol=1e-5)


def test_low_rank_reaches_what_gradient_steps_approach() -> None:
    """The paper trains U, V and t; whatever training reaches, the closed form is at least as low, and nearly reached."""
    pairs = drawn(noise=0.5)
    head = LowRankAffine(20, 14, rank=3, penalty=0.0)
    head.fit(pairs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = nn.Sequential(nn.Linear(20, 3, bias=False), nn.Linear(3, 14))
    training.train(
        trained,
        lambda places: (trained(pairs.new[places]) - pairs.old[places]).square().sum(1).mean(),
        len(pairs.old),
        recipe=training.Recipe(lr=3e-2, batch=300),
        steps=400,
    )
    with torch.no_grad():
        reached = float((trained(pairs.new) - pairs.old).double().square().sum(1).mean())
    assert loss(head, pairs) <= reached + 1e-7
    assert reached <= 1.05 * loss(head, pairs)


def test_rank_only_helps() -> None:
    pairs = drawn(noise=0.5)
    losses = []
    for rank in (1, 3, 6, 14):
        head = LowRankAffine(20, 14, rank=rank, penalty=0.0)
        head.fit(pairs)
        losses.append(loss(head, pairs))
    assert losses == sorted(losses, reverse=True)


def test_mlp_without_steps_is_ridge_on_the_pairs_it_was_taught() -> None:
    pairs = drawn()
    head = ResidualMLP(20, 14)
    head.fit(pairs, steps=0)
    x = torch.randn(5, 20)
    assert torch.equal(head.compatible(x), head.skip(F.normalize(x, dim=1)))


def test_mlp_learns_what_is_not_linear() -> None:
    draw = torch.Generator().manual_seed(0)
    new = torch.randn(1500, 6, generator=draw)
    first = torch.randn(6, 16, generator=draw)
    old = torch.relu(F.normalize(new, dim=1) @ first) @ torch.randn(16, 6, generator=draw) + 0.1
    taught, judged = pairing.of(old[:1200], new[:1200]), pairing.of(old[1200:], new[1200:])
    linear, head = Ridge(6, 6), ResidualMLP(6, 6, hidden=64)
    linear.fit(taught)
    head.fit(taught, steps=400)
    assert loss(head, judged) < 0.5 * loss(linear, judged)


def test_mlp_keeps_the_best_on_held_out_pairs() -> None:
    """Old vectors that are noise: training only finds chance, so the start, which knows it, stays."""
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    pairs = pairing.of(noise, torch.randn(60, 8, generator=torch.Generator().manual_seed(2)))
    start, trained = ResidualMLP(8, 8), ResidualMLP(8, 8)
    start.fit(pairs, steps=0)
    trained.fit(pairs, steps=300)
    places = (~_taught(pairs, trained)).nonzero()[:, 0]
    held = Pairs(pairs.old[places], pairs.new[places])
    assert loss(trained, held) <= loss(start, held) + 1e-9


def _taught(pairs: Pairs, head: ResidualMLP) -> Tensor:
    from instar.bench.seeds import stream

    order = torch.randperm(len(pairs.old), generator=stream(0, "held out"))
    taught = torch.ones(len(order), dtype=torch.bool)
    taught[order[: round(head.held_out * len(order))]] = False
    return taught


def test_maps_of_real_features_find_neighbours(digits: tuple[Pairs, Pairs]) -> None:
    """On images that took no part: chance is 10 of 900, no map fails, and every map finds most of what least squares does."""
    first, second = digits
    width = (first.new.shape[1], first.old.shape[1])
    found = {}
    for name, head in (
        ("no_map", NoMap(*width)),
        ("ridge", Ridge(*width)),
        ("procrustes", Procrustes(*width)),
        ("low_rank_affine", LowRankAffine(*width, rank=8)),
        ("residual_mlp", ResidualMLP(*width)),
    ):
        head.fit(first, steps=300)
        found[name] = recall(head, second)
    assert found["no_map"] < 0.1
    assert found["ridge"] > 0.4
    assert min(found["procrustes"], found["low_rank_affine"], found["residual_mlp"]) > 3 * found["no_map"]
    assert found["residual_mlp"] > found["ridge"] - 0.05


def test_a_chain_of_rotations_comes_back_to_the_start() -> None:
    new = F.normalize(torch.randn(300, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    middle = new @ orthonormal(10, 10, 1).T
    oldest = middle @ orthonormal(10, 10, 2).T
    first, second = Ridge(10, 10), Procrustes(10, 10)
    first.fit(pairing.of(oldest, middle))
    second.previous = first
    second.fit(pairing.of(middle, new))
    for generation, wanted in enumerate((oldest, middle, new)):
        assert torch.allclose(second.project(new.float(), generation), wanted.float(), atol=1e-4)


@pytest.mark.parametrize("kind", [NoMap, Ridge, Procrustes, LowRankAffine, ResidualMLP])
def test_what_a_map_refuses(kind: type[CompatibleHead]) -> None:
    with pytest.raises(ShapeError, match="input_dim"):
        kind(8, 8, input_dim=4)
    with pytest.raises(ShapeError, match="1 or more"):
        kind(8, 0)
    head = kind(8, 8)
    few = pairing.of(torch.ones(1, 8), torch.ones(1, 8))
    with pytest.raises(DataError, match="at least"):
        head.fit(few)


def test_queries_of_another_precision() -> None:
    head = Ridge(8, 8)
    with pytest.raises(ShapeError, match=r"expects vectors of torch.float32, received torch.float64"):
        head.project(torch.ones(2, 8, dtype=torch.float64), 0)
    with pytest.raises(ShapeError, match=r"expects vectors of torch.float32, received torch.int64"):
        NoMap(8, 8).project(torch.ones(2, 8, dtype=torch.int64), 0)


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        (Ridge, {"penalty": -1.0}),
        (Ridge, {"penalty": float("nan")}),
        (Procrustes, {"scale": "two"}),
        (LowRankAffine, {"rank": 0}),
        (LowRankAffine, {"penalty": float("inf")}),
        (ResidualMLP, {"hidden": 0}),
        (ResidualMLP, {"held_out": 0.0}),
    ],
)
def test_knobs_out_of_range(kind: type[CompatibleHead], knobs: dict[str, float | str]) -> None:
    with pytest.raises(ShapeError, match=next(iter(knobs))):
        kind(8, 8, **knobs)


@pytest.mark.parametrize("kind", [Ridge, Procrustes, LowRankAffine])
def test_pairs_that_are_all_alike(kind: type[CompatibleHead]) -> None:
    """One direction on both sides: whatever is asked, the answer is that direction, and nothing is NaN."""
    new, old = torch.ones(20, 6), torch.tensor([[1.0, 2, 3, 4]]).expand(20, 4)
    head = kind(6, 4)
    head.fit(pairing.of(old, new))
    assert torch.allclose(head.project(new[:2], 0), F.normalize(old[:2], dim=1), atol=1e-5)
    assert all(torch.isfinite(value).all() for value in head.state_dict().values())
