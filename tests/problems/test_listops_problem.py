"""ListOps and what it shares with other sorting of sequences: padding counts for nothing, and either kind of mixer may read."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.cards import Card
from instar.catalogue import Build
from instar.data import listops
from instar.errors import ShapeError
from instar.interfaces import Data, Mixer
from instar.problems import sequence_classes
from instar.problems.listops import ListopsProblem
from instar.problems.sequence_classes import SequenceClassifier

SMALL = {
    **{"tree_depth": 4, "args": 3, "shortest": 8, "longest": 30, "train_items": 300, "valid_items": 40, "test_items": 77},
    **{"width": 16, "depth": 1, "heads": 2, "batch": 16},
}


class Neighbours(Mixer):
    """The mean of a token and the real ones on both of its sides: the plainest layer that reads what comes later."""

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.out = torch.nn.Linear(width, width)

    def forward(
        self, x: Tensor, state: None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, None]:
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        sides = torch.nn.functional.pad(x, (0, 0, 1, 1))
        return self.out((sides[:, :-2] + x + sides[:, 2:]) / 3), None

    reference = forward

    def init_state(self, batch: int) -> None:
        return None


@pytest.fixture(scope="module")
def problem() -> ListopsProblem:
    return ListopsProblem(**SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(problem: ListopsProblem) -> Data:
    return problem.load(0)


def subject(problem: ListopsProblem, data: Data, address: str) -> SequenceClassifier:
    if address == "both sides":
        card: Card = catalogue.minimal(Neighbours, catalogue.method("gru").path)
        torch.manual_seed(0)
        return problem.classifier(Build(card, Neighbours, {}), data, 0)
    found = catalogue.parse(address)
    return lift(problem, found.slug, found.arguments, data, 0)  # type: ignore[no-any-return]


ADDRESSES = ["softmax", "gru", "linear_attention", "both sides"]


def test_labels_are_values_and_splits_share_nothing(problem: ListopsProblem, data: Data) -> None:
    splits = (data.train, data.valid, data.test)
    for split in splits:
        assert [listops.value(listops.show(row)) for row in split.rows] == split.labels.tolist()
    texts = [row.tobytes() for split in splits for row in split.rows]
    assert len(texts) == len(set(texts)) == 300 + 40 + 77
    assert problem.load(1).sha256 == data.sha256  # seeds pair over items


def test_the_floor_is_that_of_the_class_training_has_most_of(data: Data) -> None:
    most = np.bincount(data.train.labels).argmax()
    share = sum(label == most for label in data.test.labels.tolist()) / 77
    assert data.facts["accuracy_of_the_majority_class"] == pytest.approx(share, abs=1e-4)


def test_the_floor_is_what_first_operator_and_extreme_digits_tell(problem: ListopsProblem, data: Data) -> None:
    def told(row: np.ndarray) -> tuple[int, bool, bool]:
        return int(row[0]), 0 in row, 9 in row

    seen: dict[tuple[int, bool, bool], Counter[int]] = defaultdict(Counter)
    for row, label in zip(data.train.rows, data.train.labels.tolist(), strict=True):
        seen[told(row)][label] += 1
    best = {key: min(found, key=lambda label: (-found[label], label)) for key, found in seen.items()}
    right = [best.get(told(row), 0) == label for row, label in zip(data.test.rows, data.test.labels.tolist(), strict=True)]
    floor = problem.floors(data)["accuracy"]
    assert floor.value == pytest.approx(sum(right) / 77)
    assert floor.value > data.facts["accuracy_of_the_majority_class"]


def test_the_card_says_the_floor_of_the_default_lists() -> None:
    problem = ListopsProblem()
    assert f"{problem.floors(problem.load(0))['accuracy'].value:.3g}" in catalogue.problem("listops").caution


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_item_is_scored_alike_at_any_batch_size(
    address: str, problem: ListopsProblem, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject(problem, data, address)
    found = problem.evaluate(model, data.test)["accuracy"]
    assert list(found.weights) == [1.0] * data.facts["test_items"]
    monkeypatch.setattr(sequence_classes, "_EVALUATION_TOKENS", 1)
    alone = problem.evaluate(model, data.test)["accuracy"]
    assert list(found.totals) == list(alone.totals)
    with torch.no_grad():
        answers = [int(model(torch.tensor(row[None].astype(int)))[0].argmax()) for row in data.test.rows]
    assert [float(a == b) for a, b in zip(answers, data.test.labels.tolist(), strict=True)] == list(found.totals)


@pytest.mark.parametrize("address", ADDRESSES)
def test_padding_counts_for_nothing(address: str, problem: ListopsProblem, data: Data) -> None:
    """In logits and in gradients, whatever token stands in it."""
    model = subject(problem, data, address)
    tokens, mask, _ = data.test.batch(range(12))
    assert mask is not None
    want = torch.cat([model(torch.tensor(data.test.rows[i][None].astype(int))) for i in range(12)])
    longer = torch.cat([tokens.masked_fill(~mask, 3), torch.full((12, 5), 7)], 1)
    got = model(longer, torch.cat([mask, torch.zeros(12, 5, dtype=torch.bool)], 1))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    names = dict(model.named_parameters())
    both = [torch.autograd.grad(y.square().sum(), list(names.values())) for y in (got, want)]
    for name, a, b in zip(names, *both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("address", ADDRESSES)
def test_training_learns_and_depends_on_the_seed_alone(address: str, data: Data) -> None:
    problem = ListopsProblem(**SMALL, lr=1e-2)  # type: ignore[arg-type]
    losses: list[float] = []
    models = [subject(problem, data, address) for _ in range(3)]
    problem.fit(models[0], data.train, steps=60, seed=1, monitor=lambda _, value: losses.append(value))
    problem.fit(models[1], data.train, steps=60, seed=1)
    problem.fit(models[2], data.train, steps=60, seed=2)
    assert losses[0] == pytest.approx(math.log(10), abs=0.2)
    assert sum(losses[-10:]) / 10 < losses[0] - 0.1
    weights = [model.embedding.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_epoch_shows_every_sequence_once_among_its_like(problem: ListopsProblem, data: Data) -> None:
    lengths = data.train.lengths
    batches = sequence_classes._epoch(lengths, 16, torch.Generator().manual_seed(0))
    assert batches.shape == (300 // 16, 16)
    assert len(set(batches.flatten().tolist())) == batches.numel()
    spread = np.mean([np.ptp(lengths[b]) for b in batches.numpy()])
    assert spread < 0.5 * np.ptp(lengths)
    assert problem.tokens_per_step == round(16 * lengths.mean())


def test_the_closed_form_is_what_the_counter_counts(problem: ListopsProblem, data: Data) -> None:
    model = subject(problem, data, "gru")
    for block in model.blocks:
        block.mixer.forward = block.mixer.reference  # type: ignore[union-attr,method-assign]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 40, dtype=torch.int64))
    assert model.forward_flops(40) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_costs_name_every_metric_of_the_card(problem: ListopsProblem, data: Data) -> None:
    card = catalogue.problem("listops")
    found = costs.measure(problem, subject(problem, data, "softmax"), data, 0)
    assert {m.id for m in card.metrics if m.kind == "cost"} == {name for name in found if "." not in name}
    assert {m.id for m in card.metrics if m.kind == "quality"} == {"accuracy"}


@pytest.mark.parametrize("bad", [{"tree_depth": 1}, {"args": 1}, {"shortest": 60}, {"test_items": 0}, {"batch": 0}, {"width": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="received"):
        ListopsProblem(**{**SMALL, **bad})  # type: ignore[arg-type]
