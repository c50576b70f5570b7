"""BCT and regression: their losses in closed form, what is frozen, classes where nobody knows them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from instar.compat import pairs as pairing
from instar.compat import pseudo_classes
from instar.compat.bct import BCT
from instar.compat.embedding import ready
from instar.compat.regression import Regression
from instar.errors import ShapeError
from instar.interfaces import Pairs


def _pairs(items: int = 120, classes: int = 6, noise: float = 0.3) -> Pairs:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(items) % classes
    new = torch.randn(classes, 12, generator=draw)[labels] + noise * torch.randn(items, 12, generator=draw)
    old = new @ torch.randn(12, 8, generator=draw) + 0.3 * torch.randn(items, 8, generator=draw)
    return pairing.of(old, new, labels)


def test_the_loss_of_bct() -> None:
    head = BCT(12, 8, k=3, alpha=7.0, label_smoothing=0.1, hidden=16).double()
    given = ready(head, _pairs())
    assert given.labels is not None
    torch.manual_seed(0)
    objective = head.objective(given, 0).double()
    h = torch.randn(120, 11, dtype=torch.float64)
    frozen = torch.stack([given.old[given.labels == c].mean(0) for c in range(6)])

    def cross(logits: torch.Tensor) -> torch.Tensor:
        assert given.labels is not None
        spread = torch.full_like(logits, 0.1 / 6)
        spread[torch.arange(120), given.labels] += 0.9
        return -(spread * logits.log_softmax(1)).sum(1).mean()

    expected = cross(F.normalize(h, dim=1) @ objective.classifier.weight.T)  # type: ignore[union-attr]
    expected = expected + 7 * cross(F.normalize(h[:, :8], dim=1) @ frozen.T)
    assert float((objective(h, torch.arange(120)) - expected).detach().abs()) < 1e-12
    assert [name for name, _ in objective.named_parameters()] == ["classifier.weight"]


def test_extra_dimensions_are_not_seen_by_the_influence_loss() -> None:
    head = BCT(12, 8, k=3, hidden=16)
    objective = head.objective(ready(head, _pairs()), 0)
    h = torch.randn(120, 11, requires_grad=True)
    with torch.no_grad():
        objective.classifier.weight.zero_()  # type: ignore[union-attr, operator]
    objective(h, torch.arange(120)).backward()
    assert h.grad is not None
    assert float(h.grad[:, 8:].abs().max()) == 0
    assert float(h.grad[:, :8].abs().max()) > 0


def test_the_old_models_own_classifier_replaces_means_of_the_classes_it_knew() -> None:
    head = BCT(12, 8, hidden=16)
    given = ready(head, _pairs())
    assert given.labels is not None
    own = torch.full((6, 8), math.nan)
    own[:3] = torch.arange(24.0).reshape(3, 8)
    head.old_classifier = own
    frozen = head.objective(given, 0).frozen
    assert torch.equal(frozen[:3], own[:3])  # type: ignore[index]
    assert torch.equal(frozen[3:], pseudo_classes.means(given.old, given.labels)[3:])  # type: ignore[index]
    head.old_classifier = own[:4]
    with pytest.raises(ShapeError, match=r"\[6, 8\]"):
        head.fit(_pairs(), steps=1)
    assert "old_classifier" not in head.state_dict()


def test_clusters_find_classes_that_are_apart_and_every_one_has_a_member() -> None:
    given = _pairs(items=300, noise=0.05)
    found = pseudo_classes.clusters(given.new, 6, seed=0)
    assert torch.equal(found, pseudo_classes.clusters(given.new, 6, seed=0))
    assert given.labels is not None
    table = torch.zeros(6, 6).index_put_((found, given.labels), torch.ones(300), accumulate=True)
    assert int((table > 0).sum()) == 6
    few = pseudo_classes.clusters(given.new[:1].repeat(5, 1), 3, seed=0)
    assert few.tolist() == [0] * 5
    many = pseudo_classes.clusters(given.new, 250, seed=0)
    assert sorted(set(many.tolist())) == list(range(int(many.max()) + 1))


def test_bct_without_labels_learns_from_clusters() -> None:
    given = _pairs(items=300)
    head = BCT(12, 8, k=2, hidden=32)
    head.fit(Pairs(given.old, given.new), steps=200)
    with torch.no_grad():
        assert torch.allclose(head.full(given.new).norm(dim=1), torch.ones(300), atol=1e-5)
        assert torch.equal(head.compatible(given.new), head.full(given.new)[:, :8])
        nearest = (head.project(given.new, 0) @ given.old.T).argmax(1)
    assert given.labels is not None
    assert float((given.labels[nearest] == given.labels).double().mean()) > 0.8


@pytest.mark.parametrize("kind", ["l2", "cosine"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_loss_of_regression(kind: str, labelled: bool) -> None:
    head = Regression(12, 8, loss=kind, weight=3.0, class_weight=0.5, k=2, hidden=16).double()  # type: ignore[arg-type]
    given = _pairs()
    given = ready(head, given if labelled else Pairs(given.old, given.new))
    objective = head.objective(given, 0).double()
    h = torch.randn(120, 10, dtype=torch.float64)
    away = (h[:, :8] / 8**0.5 - given.old).square().sum(1) if kind == "l2" else 1 - F.cosine_similarity(h[:, :8], given.old)
    expected = 3 * away.mean()
    if given.labels is not None:
        logits = F.normalize(h, dim=1) @ objective.classifier.weight.T  # type: ignore[union-attr]
        expected = expected + 0.5 * F.cross_entropy(logits, given.labels)
    assert float((objective(h, torch.arange(120)) - expected).detach().abs()) < 1e-12


@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_regression_comes_near_the_old_vectors(kind: str) -> None:
    given = _pairs(items=300)
    head = Regression(12, 8, loss=kind, hidden=32)  # type: ignore[arg-type]
    head.fit(given, steps=300)
    with torch.no_grad():
        assert float((head.project(given.new, 0) * given.old).sum(1).mean()) > 0.9


def test_what_is_refused() -> None:
    for make in (
        lambda: BCT(12, 8, alpha=-1.0), lambda: BCT(12, 8, label_smoothing=1.0), lambda: BCT(12, 8, clusters=1),
        lambda: BCT(12, 8, k=-1), lambda: Regression(12, 8, loss="l1"), lambda: Regression(12, 8, weight=0.0),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            make()
