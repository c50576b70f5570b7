"""BT²: what the paper says holds of every input, the loss beside its reference, folding, sequences, another modality."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compat import pairs as pairing
from instar.compat import pseudo_classes
from instar.compat.bt2 import BT2
from instar.compat.bt2_network import BT2Network, Targets, reference
from instar.compat.embedding import ready
from instar.compat.procrustes import Procrustes
from instar.errors import DataError, DivergedError, ShapeError
from instar.interfaces import Pairs

SETTINGS: list[dict[str, Any]] = [
    {},
    {"parameterisation": "cayley"},
    {"parameterisation": "householder"},
    {"transform": "p"},
    {"transform": "q"},
    {"transform": "none"},
    {"side_branch": "linear"},
    {"k": 0},
    {"start": False},
    {"layers": 0},
    {"labels": False},
    {"label_smoothing": 0.1},
]
NAMES = [", ".join(f"{name}={value}" for name, value in setting.items()) or "default" for setting in SETTINGS]


def _pairs(new_dim: int = 12, old_dim: int = 8, items: int = 120, classes: int = 6, seed: int = 0) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(items) % classes
    new = torch.randn(classes, new_dim, generator=draw)[labels] + 0.5 * torch.randn(items, new_dim, generator=draw)
    old = new @ torch.randn(new_dim, old_dim, generator=draw) + 0.3 * torch.randn(items, old_dim, generator=draw)
    return pairing.of(old, new, labels)


def _built(new_dim: int = 12, old_dim: int = 8, **knobs: Any) -> BT2:
    return BT2(new_dim, old_dim, **{"k": 4, "hidden": 16, **knobs})


def _stirred(network: BT2Network, seed: int = 5) -> BT2Network:
    """Away from where training starts, so that P and Q are no bases and no term of the loss hides another."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("widths", [(12, 8), (8, 12), (8, 8)], ids=["narrower", "wider", "equal"])
def test_length_and_similarity_of_full_vectors(setting: dict[str, Any], widths: tuple[int, int]) -> None:
    """‖v‖² = 1 + C², and ⟨v, v'⟩ = ⟨o_k, o_k'⟩ + C² ⟨f, f'⟩, before and after training."""
    head = _built(*widths, C=3.0, **setting)
    for fit in (False, True):
        if fit:
            head.fit(_pairs(*widths), steps=5)
        x = torch.randn(50, widths[0], generator=torch.Generator().manual_seed(1)) * 7
        with torch.no_grad():
            v, f, h = head.full(x), head.matched(x), head.backbone(x)
            gram = 9 * f @ f.T
            if head.side is not None:
                o = F.normalize(head.side(h.relu() if head.side_branch == "relu" else h), dim=1)
                gram += o @ o.T
        assert v.shape == (50, widths[0] + head.extra)
        assert head.full_dim == v.shape[1] >= widths[1]
        assert torch.allclose(v.square().sum(1), torch.full((50,), 9.0 + (head.extra > 0)), rtol=1e-5)
        assert torch.allclose(v @ v.T, gram, atol=1e-4)
        base = head.bases()[0].double()
        assert float((base.T @ base - torch.eye(len(base))).abs().max()) < 1e-5


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_the_network_is_its_reference_in_values_and_gradients(setting: dict[str, Any]) -> None:
    head = _built(**setting).double()
    network, targets, x = head.network(_pairs(), 0)
    _stirred(network)
    places = torch.arange(0, 120, 3)
    losses = {
        "network": network.loss(network.backbone(x[places]), targets, places),
        "reference": reference(network, network.backbone(x[places]), targets, places)[1],
    }
    gradients = [torch.autograd.grad(loss, list(network.parameters())) for loss in losses.values()]
    assert float((losses["network"] - losses["reference"]).detach().abs()) < 1e-12
    assert max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) < 1e-10
    assert min(float(g.abs().max()) for g in gradients[0] if g.numel() > 1) > 0


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_folded_equals_unfolded(setting: dict[str, Any]) -> None:
    head = _built(**setting).double()
    network, targets, x = head.network(_pairs(), 0)
    head.take(_stirred(network))
    places = torch.arange(120)
    with torch.no_grad():
        v, _ = reference(network, network.backbone(x), targets, places)
        assert torch.allclose(head.full(x), v, atol=1e-9)
        assert torch.allclose(head.compatible(x), network(network.backbone(x)).compatible, atol=1e-9)
    assert all("raw" not in name and "base" not in name for name in head.state_dict())


def test_the_loss_in_closed_form() -> None:
    """Perfect matches leave the cross entropies; each weight multiplies its own term."""
    head = _built(8, 8, k=0, new_weight=2.0, old_weight=3.0, class_weight=5.0, transform="none").double()
    pairs = ready(head, _pairs(8, 8))
    assert pairs.labels is not None
    network = BT2Network(head, head.backbone, None, 6).double()
    frozen = pseudo_classes.means(pairs.old, pairs.labels)
    places = torch.arange(120)
    # h whose first coordinates are the new vectors: f = φ_p, and z_c = C f.
    h = torch.cat([4 * pairs.new, torch.zeros(120, 8).double()], 1)
    assert network.classifier is not None
    cross = F.cross_entropy(network.classifier(pairs.new), pairs.labels)
    influence = F.cross_entropy(pairs.new @ frozen.T, pairs.labels)
    away = 1 - (pairs.new * pairs.old).sum(1).mean()
    found = network.loss(h, Targets(pairs.old, pairs.new, pairs.labels, frozen), places)
    assert float(found.detach()) == pytest.approx(float((cross + 5 * influence + 3 * away).detach()), abs=1e-10)
    opposite = network.loss(h, Targets(pairs.old, -pairs.new, None, None), places)
    assert float(opposite.detach()) == pytest.approx(float(2 * 2 + 3 * away), abs=1e-10)


def test_the_pseudo_classifier_is_the_mean_old_vector_of_each_class_and_never_changes() -> None:
    given = _pairs()
    head = _built()
    network, targets, x = head.network(given, 0)
    assert given.labels is not None
    assert targets.frozen is not None
    for label in range(6):
        assert torch.allclose(targets.frozen[label], F.normalize(given.old, dim=1)[given.labels == label].mean(0), atol=1e-6)
    before = targets.frozen.clone()
    places = torch.arange(120)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(3):
        network.loss(network.backbone(x), targets, places).backward()
        optimiser.step()
    assert torch.equal(targets.frozen, before)
    assert not targets.frozen.requires_grad


def test_lengths_of_targets_and_inputs_do_not_matter() -> None:
    """Targets are made unit vectors again, and the network reads every vector at one length."""
    given = _pairs()
    factor = torch.logspace(-2, 2, 120)[:, None]
    stretched = Pairs(given.old * factor, given.new * factor.flip(0), given.labels)
    first, second = _built(), _built()
    first.fit(given, steps=10)
    second.fit(stretched, steps=10)
    with torch.no_grad():
        assert torch.allclose(first.full(given.new), second.full(given.new), atol=1e-3)
        assert torch.allclose(first.full(given.new), first.full(1000 * given.new), atol=1e-5)


def test_without_extra_dimensions_the_ranking_is_that_of_f() -> None:
    head = _built(8, 8, k=0)
    head.fit(_pairs(8, 8), steps=20)
    x = torch.randn(40, 8)
    with torch.no_grad():
        v, f = head.full(x).double(), head.matched(x).double()
    assert torch.allclose(v @ v.T / 4, f @ f.T, atol=1e-6)
    assert torch.equal(head.compatible(x), head.full(x))  # a rotation of all of f


def test_the_larger_c_the_more_new_vectors_compare_as_f() -> None:
    def off(C: float) -> float:
        head = _built(C=C)
        head.fit(_pairs(), steps=5)
        x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            v, f = F.normalize(head.full(x), dim=1), head.matched(x)
        return float((v @ v.T - f @ f.T).abs().max())

    distances = [off(C) for C in (1.0, 3.0, 30.0)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 2 / 900 + 1e-5  # |⟨o, o'⟩ − ⟨f, f'⟩| / (1 + C²)


def test_a_known_rotation_is_reached() -> None:
    """Old vectors that are rotated new ones: with k = 0 new/old becomes new/new, and Procrustes finds the rotation itself."""
    draw = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    if rotation.det() < 0:  # so that either parameterisation, whose determinant is that of its base, has it within reach
        rotation[:, 0] *= -1
    given = _pairs(8, 8, items=400)
    given = pairing.of(given.new @ rotation.T, given.new, given.labels)
    head = BT2(8, 8, k=0, layers=0, class_weight=0.0)
    head.fit(Pairs(given.old[:300], given.new[:300], given.labels[:300]), steps=600)  # type: ignore[index]
    held = given.new[300:]
    with torch.no_grad():
        crossed, own = F.normalize(head.compatible(held), dim=1) @ given.old[300:].T, held @ held.T
    assert float((crossed - own).abs().mean()) < 0.05
    assert torch.equal(crossed.argmax(1), torch.arange(100))
    exact = Procrustes(8, 8)
    exact.fit(given)
    assert torch.allclose(F.normalize(exact.compatible(held), dim=1), given.old[300:], atol=1e-5)


def test_a_sequence_of_updates_nests() -> None:
    """The first coordinates of the third encoder's vectors are comparable with all that is stored."""
    given = _pairs(12, 8)
    first = _built(12, 8)
    first.fit(given, steps=20)
    with torch.no_grad():
        stored = first.full(given.new)
    second = _built(10, first.full_dim, k=3)
    second.previous = first
    second.fit(pairing.of(stored, given.new[:, :10], given.labels), steps=20)
    assert (second.old_dim, second.full_dim, second.newest) == (12 + 4, 10 + 6, 2)
    x = given.new[:, :10]
    with torch.no_grad():
        v = second.full(x)
        assert torch.equal(second.lower(v, 2), v)
        assert torch.equal(second.lower(v, 1), v[:, :16])
        assert torch.allclose(F.normalize(second.lower(v, 0), dim=1), F.normalize(v[:, :8], dim=1), atol=1e-6)
        for generation, width in ((0, 8), (1, 16), (2, 16)):
            asked = second.project(x, generation)
            assert asked.shape == (120, width)
            assert torch.allclose(asked.norm(dim=1), torch.ones(120), atol=1e-5)
    wrong = _built(10, 5)
    wrong.previous = first
    with pytest.raises(ShapeError, match="width 16"):
        wrong.fit(_pairs(10, 5))


def test_padded_old_rows_score_as_the_prefix_does() -> None:
    given = _pairs()
    head = _built().double()
    head.fit(given, steps=5)
    with torch.no_grad():
        v, z = head.full(given.new.double()), head.compatible(given.new.double())
    old = given.old.double()
    padded = F.pad(old, (0, head.full_dim - head.old_dim))
    for row in range(10):
        scores = torch.stack([(v[row] * one).cumsum(0)[-1] for one in padded])
        assert torch.equal(scores, torch.stack([(z[row] * one).cumsum(0)[-1] for one in old]))


def test_another_modality_reads_its_own_features() -> None:
    given = _pairs()
    inputs = given.new @ torch.randn(12, 20, generator=torch.Generator().manual_seed(4)) + 3
    head = _built(input_dim=20, hidden=64, labels=False)
    head.fit(pairing.of(given.old, given.new, given.labels, inputs), steps=300)
    with torch.no_grad():
        matched, found = head.matched(inputs), head.project(inputs, 0)
    assert float((matched * given.new).sum(1).mean()) > 0.8
    assert float((found * given.old).sum(1).mean()) > 0.8


def test_start_begins_at_the_new_vectors() -> None:
    given = _pairs()
    head = _built()
    head.fit(given, steps=0)
    with torch.no_grad():
        assert torch.allclose(head.matched(given.new), given.new, atol=1e-6)
    head = _built(start=False)
    head.fit(given, steps=0)
    with torch.no_grad():
        assert float((head.matched(given.new) * given.new).sum(1).mean()) < 0.9


def test_training_teaches_on_real_images() -> None:
    """Digits: old vectors are a coarse projection of the pixels, new ones a finer one; held-out queries find their class."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(digits.data).float() - 7
    target = torch.from_numpy(digits.target)
    draw = torch.Generator().manual_seed(0)
    old = (pixels @ torch.randn(64, 12, generator=draw)).relu() + 0.1
    given = pairing.of(old[:1200], pixels[:1200], target[:1200])
    head = BT2(64, 12, k=4, hidden=64)
    head.fit(given, steps=300)
    gallery, queries = F.normalize(old[1200:], dim=1), pixels[1200:]
    labels = target[1200:]

    def top1(asked: Tensor, rows: Tensor) -> float:
        scores = (asked @ rows.T).fill_diagonal_(-math.inf)
        return float((labels[scores.argmax(1)] == labels).double().mean())

    with torch.no_grad():
        new_old = top1(head.project(queries, 0), gallery)
        new_new = top1(head.project(queries, 1), head.project(queries, 1))
    old_old = top1(gallery, gallery)
    assert new_old > old_old - 0.03
    assert new_new > old_old


def test_a_head_changes_only_when_training_is_done() -> None:
    head = _built()
    head.fit(_pairs(), steps=3)
    before = {name: value.clone() for name, value in head.state_dict().items()}

    def interrupt(step: int, loss: float) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        head.fit(_pairs(seed=1), steps=3, monitor=interrupt)
    with pytest.raises(DivergedError):
        _built(new_weight=1e300, old_weight=1e300).fit(_pairs(), steps=3)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_what_is_refused() -> None:
    for knobs in (
        {"k": -1}, {"C": 0.0}, {"C": math.inf}, {"old_weight": -1.0}, {"label_smoothing": 1.0}, {"hidden": 0}, {"layers": -1},
        {"transform": "qp"}, {"parameterisation": "svd"}, {"side_branch": "gelu"}, {"C": math.nan},
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            _built(**knobs)
    head, given = _built(), _pairs()
    for labels in (torch.zeros(120), torch.zeros(119, dtype=torch.int64), -torch.ones(120, dtype=torch.int64)):
        with pytest.raises(DataError, match="labels"):
            head.fit(Pairs(given.old, given.new, labels))
