"""RACT: its contrast beside a loop over pairs, what is masked, the hardest negatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from instar.compat import pairs as pairing
from instar.compat.embedding import ready
from instar.compat.ract import RACT, contrast
from instar.errors import ShapeError
from instar.interfaces import Pairs


def _units(items: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def _looped(new: torch.Tensor, old: torch.Tensor, y: list[int], temperature: float, negatives: int) -> float:
    total = 0.0
    for i in range(len(new)):
        own = (new[i] @ old[i]) / temperature
        kinds = [[(new[i] @ side[j]) / temperature for j in range(len(new)) if y[j] != y[i]] for side in (old, new)]
        if negatives:
            kinds = [sorted(kind, reverse=True)[:negatives] for kind in kinds]
        total += float(torch.stack([own, *kinds[0], *kinds[1]]).logsumexp(0) - own)
    return total / len(new)


@pytest.mark.parametrize("negatives", [0, 3, 100])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_contrast_is_the_loop_over_pairs(negatives: int, temperature: float) -> None:
    new, old = _units(12, 6, 0), _units(12, 6, 1)
    y = [i % 4 for i in range(12)]
    same = torch.tensor(y)[:, None] == torch.tensor(y)
    found = contrast(new, old, same, temperature, negatives)
    assert float(found) == pytest.approx(_looped(new, old, y, temperature, negatives), abs=1e-9)


def test_a_batch_of_one_class_has_nothing_to_contrast() -> None:
    new = _units(5, 4, 0).requires_grad_()
    found = contrast(new, _units(5, 4, 1), torch.ones(5, 5, dtype=torch.bool), 0.01, 2)
    found.backward()
    assert float(found.detach()) == 0
    assert new.grad is not None
    assert bool(torch.isfinite(new.grad).all())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_loss(labelled: bool) -> None:
    """Without labels every item is a class of its own, and there is no classifier."""
    head = RACT(6, 4, temperature=0.2, weight=2.0, k=2, hidden=8).double()
    y = torch.arange(12) % 3
    given = ready(head, Pairs(_units(12, 4, 0).float(), _units(12, 6, 1).float(), y if labelled else None))
    objective = head.objective(given, 0).double()
    h = torch.randn(12, 6, dtype=torch.float64)
    expected = 2 * _looped(F.normalize(h[:, :4], dim=1), given.old, (y if labelled else torch.arange(12)).tolist(), 0.2, 0)
    if labelled:
        logits = F.normalize(h, dim=1) @ objective.classifier.weight.T  # type: ignore[union-attr]
        expected += float(F.cross_entropy(logits, y).detach())
    assert float(objective(h, torch.arange(12)).detach()) == pytest.approx(expected, abs=1e-6)
    assert labelled == any(True for _ in objective.parameters())


def test_it_learns_to_find_old_vectors_without_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    new = torch.randn(300, 12, generator=draw)
    given = pairing.of(new @ torch.randn(12, 8, generator=draw), new)
    head = RACT(12, 8, hidden=64)
    head.fit(Pairs(given.old[:250], given.new[:250]), steps=300)
    with torch.no_grad():
        found = (head.project(given.new[250:], 0) @ given.old[250:].T).argmax(1)
    assert float((found == torch.arange(50)).double().mean()) > 0.5  # by chance 0.02


def test_what_is_refused() -> None:
    for make in (
        lambda: RACT(6, 4, temperature=0.0),
        lambda: RACT(6, 4, weight=0.0),
        lambda: RACT(6, 4, negatives=-1),
    ):
        with pytest.raises(ShapeError):
            make()
