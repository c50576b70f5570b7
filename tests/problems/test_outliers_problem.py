"""The outliers problem: every row is scored, what it measures is what it says, and a perfect model reaches the least nats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar import catalogue
from instar.catalogue import Build
from instar.compression.outliers import outlier_report
from instar.compression.static_ranges import quantised
from instar.data.backcopy import Backcopy
from instar.errors import ShapeError
from instar.problems.outliers import OutliersProblem, _nats
from instar.receipt import fingerprint

METRICS = {"max_norm", "kurtosis", "nats@float"} | {
    f"{what}@{scales}_{bits}" for what in ("nats", "gap") for scales in ("static", "token") for bits in (8, 6)
}


def build(slug: str) -> Build:
    card = catalogue.methods()[slug]
    return Build(card, catalogue.load(card), {})


@pytest.fixture(scope="module")
def problem() -> OutliersProblem:
    return OutliersProblem(width=16, length=16, batch=8, test_rows=24)


@pytest.mark.parametrize("slug", ["softmax", "clipped_softmax", "gated_softmax", "softmax1", "sinks", "gru"])
def test_every_row_is_scored_and_the_model_left_as_it_was(problem: OutliersProblem, slug: str) -> None:
    data = problem.load(0)
    model = problem.decoder(build(slug), data, 0)
    losses: list[float] = []
    problem.fit(model, data.train, steps=3, seed=0, monitor=lambda step, loss: losses.append(loss))
    before = fingerprint(model)
    found = problem.evaluate(model, data.test)
    assert set(found) == METRICS | (set() if slug == "gru" else {"sink_mass"})
    assert all(len(items.totals) == len(items.weights) == data.facts["test_items"] == 24 for items in found.values())
    assert fingerprint(model) == before
    assert losses[0] > losses[-1]
    for bits, scales in ((8, "static"), (6, "token")):
        added = found[f"nats@{scales}_{bits}"].value - found["nats@float"].value
        assert found[f"gap@{scales}_{bits}"].value == pytest.approx(added)
    declared = {metric.id for metric in catalogue.problem("outliers").metrics}
    assert found.keys() <= declared


def test_norms_are_means_over_rows_in_the_worst_tensor(problem: OutliersProblem) -> None:
    data = problem.load(0)
    model = problem.decoder(build("softmax"), data, 0)
    down: Any = model.get_submodule("blocks.0.feed.down")
    with torch.no_grad():
        down.weight[5] *= 1e6
    sums: list[Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda module, given: sums.append(given[0]))
    with torch.no_grad():
        model(data.test[:, :-1])
    hook.remove()
    found = problem.evaluate(model, data.test)
    report = outlier_report(model, [data.test[:, :-1]])
    expected = max(float(sums[0].abs().amax((1, 2)).mean()), report.tensors["blocks.0.feed.down.output"].max_norm)
    assert found["max_norm"].value == pytest.approx(expected)
    assert expected > 100
    with quantised(model, None):
        coarse = _nats(model, data.test).double().sum(1)
    assert found["nats@token_8"].totals == pytest.approx(coarse.tolist())


def test_the_sink_is_the_attention_on_the_first_token_where_nothing_is_needed(problem: OutliersProblem) -> None:
    data = problem.load(0)
    model = problem.decoder(build("softmax"), data, 0)
    mixer: Any = model.mixer
    with torch.no_grad():
        for projection in (mixer.q_proj, mixer.k_proj):
            projection.weight.zero_()  # uniform attention
    sink = problem.evaluate(model, data.test)["sink_mass"]
    idle = data.test[:, :-1] >= problem.triggers
    places = 1 / torch.arange(1, 17, dtype=torch.float64)
    want = (idle * places)[:, 8:].sum() / idle[:, 8:].sum()
    assert sink.value == pytest.approx(float(want), rel=1e-5)


class Knows(nn.Module):
    """Answers with the true distribution."""

    def __init__(self, chain: Backcopy) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        V = self.chain.bos
        table = torch.cat([self.chain.following, self.chain.start.unsqueeze(0)]).log().clamp(min=-200)
        logits = table[tokens]
        before = torch.cat([torch.full_like(tokens[:, :1], V), tokens[:, :-1]], 1)
        copies = (tokens < self.chain.triggers) & (before != V)
        sure = 200 * nn.functional.one_hot(before.clamp(max=V - 1), V) - 200.0
        return torch.where(copies.unsqueeze(-1), sure.double(), logits), None


def test_a_model_that_knows_reaches_the_least_nats(problem: OutliersProblem) -> None:
    data = problem.load(0)
    found = _nats(Knows(problem.chain()), data.test)
    assert float(found.mean()) == pytest.approx(data.facts["least_nats"], rel=1e-4)


def test_rows_differ_between_splits_and_not_between_seeds(problem: OutliersProblem) -> None:
    assert torch.equal(problem.load(0).test, problem.load(3).test)
    assert not torch.equal(problem.load(0).test, problem.load(0).valid)


@pytest.mark.parametrize("bad", [{"length": 3}, {"width": 0}, {"triggers": 0}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        OutliersProblem(**bad)
