"""LMUFormer: its equations, the authors' numbers of parameters, frame by frame, in training, and its costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.mixers.lmuformer import LMUFormer
from instar.problems.sequence_classes import SequenceClassifier

B, T, D, ORDER = 3, 40, 8, 6
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/lmuformer.toml", cards.Card)


def make(**knobs: Any) -> tuple[LMUFormer, Tensor]:
    """In eval mode, its statistics those of some training batches."""
    torch.manual_seed(0)
    model = LMUFormer(D, **{"order": ORDER, "theta": 12.0, **knobs}).double()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(B, T, D, dtype=torch.float64))
    return model.eval(), torch.randn(B, T, D, dtype=torch.float64)


def test_is_its_equations() -> None:
    """Written with torch's own convolutions and norms, channels first, as the paper has it but for the side of the padding."""
    model, x = make()

    def convolve(weight: Tensor, z: Tensor) -> Tensor:
        return F.conv1d(F.pad(z, (2, 0)), weight)

    def norm(layer: nn.BatchNorm1d, z: Tensor) -> Tensor:
        return F.batch_norm(z, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    embedding, block, z = model.embedding, model.blocks[0], x.mT
    assert embedding is not None
    for convolution, layer in zip(embedding.convolutions, embedding.norms, strict=True):
        z = norm(layer, F.relu(convolve(convolution.weight, z)))  # type: ignore[arg-type]
    z = z + convolve(embedding.relative.weight, z)
    z = z + norm(block.memory_norm, block.memory(z.mT)[0].mT)  # type: ignore[arg-type,operator]
    hidden = F.gelu(norm(block.up_norm, F.conv1d(z, block.up.weight[..., None], block.up.bias)))  # type: ignore[arg-type,union-attr,index]
    down = F.conv1d(hidden, block.down.weight[..., None], block.down.bias)  # type: ignore[arg-type,union-attr,index]
    z = z + F.relu(norm(block.down_norm, down))  # type: ignore[arg-type]
    torch.testing.assert_close(model(x)[0], z.mT)


def test_the_authors_have_as_many_parameters() -> None:
    """1,621,796 with 128 bands, 35 words and d = 256, where the first convolution reads 128 channels and not 256."""
    model = LMUFormer(256, order=256, theta=128.0)
    classifier = SequenceClassifier(
        Build(CARD, LMUFormer, {}), embedding=nn.Linear(128, 256), classes=35, width=256, depth=2, heads=4
    )
    count = sum(p.numel() for p in [*model.parameters(), *classifier.head.parameters()])
    assert count - (256 - 128) * 256 * 3 == 1_621_796


@pytest.mark.parametrize("preset", ["default", *CARD.presets])
def test_frame_by_frame_is_the_whole(preset: str) -> None:
    model, x = make(**CARD.preset(preset))
    want, end = model(x)
    state, outputs = None, []
    for t in range(T):
        y, state = model(x[:, t : t + 1], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), want)
    for one, other in zip(states.leaves(state), states.leaves(end), strict=True):
        torch.testing.assert_close(one, other)


def test_the_answer_of_a_classifier_streams_too() -> None:
    """The running mean of outputs, through the head, is at each frame the answer to what has arrived."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        Build(CARD, LMUFormer, {}), embedding=nn.Linear(5, 16), classes=4, width=16, depth=2, heads=4
    ).eval()
    assert len(model.blocks) == 1
    frames, state, total = torch.randn(2, 30, 5), None, torch.zeros(2, 16)
    for t in range(30):
        y, state = model.blocks[0](model.embedding(frames[:, t : t + 1]), state)
        total = total + y[:, 0]
        torch.testing.assert_close(model.head(total / (t + 1)), model(frames[:, : t + 1]), rtol=1e-4, atol=1e-5)


def test_no_frame_ahead_is_read() -> None:
    model, x = make()
    other = x.clone()
    other[:, 25:] += 1.0
    assert torch.equal(model(other)[0][:, :25], model(x)[0][:, :25])
    assert not torch.equal(model(other)[0][:, 25], model(x)[0][:, 25])


@pytest.mark.parametrize("padded", [False, True])
def test_training_is_the_reference_in_gradients_and_statistics(padded: bool) -> None:
    """Where norms read the batch, whatever stands in the padding."""
    mask = torch.arange(T) < torch.tensor([[T], [17], [29]]) if padded else None
    found = []
    for way in ("forward", "reference", "garbage"):
        model, x = make()
        model.train()
        z = x.clone().requires_grad_()
        given = z if way != "garbage" or mask is None else z.masked_fill(~mask.unsqueeze(-1), float("nan"))
        y, state = getattr(model, "reference" if way == "reference" else "forward")(given, mask=mask)
        y = y if mask is None else y[mask]
        loss = y.sin().sum() + sum(leaf.square().sum() for leaf in states.leaves(state))
        found.append((y, *torch.autograd.grad(loss, [z, *model.parameters()]), *model.buffers()))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_without_parts_it_is_less() -> None:
    alone, x = make(convolutions=0, expansion=0, depth=1)
    torch.testing.assert_close(alone(x)[0], x + alone.blocks[0].memory_norm(alone.blocks[0].memory(x)[0]))  # type: ignore[operator,union-attr]
    assert len(make(depth=3)[0].blocks) == 3
    assert make(memories=2)[0].init_state(5).memories[0].shape == (5, 2, ORDER)


@pytest.mark.parametrize("knobs", [{}, {"convolutions": 0}, {"expansion": 0, "memories": 3}, {"depth": 2}], ids=str)
def test_costs_follow_the_card(knobs: dict[str, int]) -> None:
    assert CARD.cost is not None
    given = {"order": 32, "memories": 1, "depth": 1, "convolutions": 4, "expansion": 4, **knobs}
    model, sizes = LMUFormer(64, **given).eval(), {"T": 256, "D": 64, "H": 1, **given}  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, state = model(torch.randn(1, 256, 64))
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, sizes), rel=0.02)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, sizes)


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"memories": 0}, {"convolutions": -1}, {"expansion": -1}, {"theta": 0.0}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        LMUFormer(D, **wrong)
