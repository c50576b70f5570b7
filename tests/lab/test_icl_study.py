"""Probes, streams, real rows, and models of transformers under study."""

from __future__ import annotations

import pytest
import torch

from instar.bench.run import lift
from instar.errors import DataError, ShapeError
from instar.lab.elimination import Elimination
from instar.lab.icl import closeness, measures, probes, rows, shifts
from instar.lab.icl.network import TransformersBackbone
from instar.lab.icl.softmax_regression import SoftmaxRegression, certificate
from instar.lab.icl.streaming import RecursiveRidge, RunningMoment
from instar.lab.icl.tasks import TaskSampler
from instar.lab.icl_dynamics import LinearSelfAttention
from instar.lab.icl_linear import InContextDecoder
from instar.lab.least_squares import LeastSquares
from instar.lab.nearest_neighbours import NearestNeighbours
from instar.problems.in_context import InContextProblem
from instar.problems.in_context_boolean import InContextBooleanProblem


def test_streams_are_their_learners() -> None:
    d = TaskSampler(3, noise=0.2).draw(10, 8, torch.Generator().manual_seed(0), torch.float64)
    layer = LinearSelfAttention(3, examples=20)
    ridge = RecursiveRidge(10, 3, ridge=0.4)
    moment = RunningMoment(10, layer.key_query[:3, :3].detach(), float(layer.value[-1, -1].detach()))
    wanted, also = LeastSquares(ridge=0.4).prefixes(d.xs, d.ys), layer.prefixes(d.xs, d.ys).detach()
    for i in range(8):
        torch.testing.assert_close(ridge.predict(d.xs[:, i]), wanted[:, i])
        torch.testing.assert_close(moment.predict(d.xs[:, i]), also[:, i])
        ridge.update(d.xs[:, i], d.ys[:, i])
        moment.update(d.xs[:, i], d.ys[:, i])


def test_probes_read_what_is_there_and_nothing_from_noise() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = InContextDecoder(2, examples=1, model_width=16, depth=1, heads=2)
    sampler = TaskSampler(2)
    [before, after] = probes.read(learner, sampler, targets=("moment",), width=64, steps=120, lr=1e-2)
    assert before.error < 0.5
    assert (before.layer, after.layer, before.control) == (0, 1, None)
    with torch.no_grad():
        learner.network.read_in.weight.zero_()
    [blind, _] = probes.read(learner, sampler, targets=("moment",), width=16, steps=20)
    assert blind.error > 0.95
    with pytest.raises(ShapeError, match="examples"):
        probes.read(learner, sampler, examples=9)


def test_real_rows() -> None:
    patients = rows.diabetes(4)
    torch.testing.assert_close(torch.cov(patients.x.T), torch.eye(4, dtype=torch.float64))
    xs, ys = patients.contexts(200, 40, torch.Generator().manual_seed(0))
    said = LeastSquares(ridge=1.0).prefixes(xs, ys)
    assert float((said[:, -1] - ys[:, -1]).square().mean()) < float(ys[:, -1].square().mean())
    tumours = rows.breast_cancer(10)
    assert set(tumours.x.unique().tolist()) == {-1.0, 1.0}
    xs, ys = tumours.contexts(100, 30, torch.Generator().manual_seed(0))
    assert float((NearestNeighbours().prefixes(xs, ys).sign() == ys)[:, -5:].double().mean()) > 0.8
    with pytest.raises(DataError, match="rows"):
        tumours.contexts(1, 1000, torch.Generator())
    for width, load in ((11, rows.diabetes), (62, rows.digits), (31, rows.breast_cancer)):
        with pytest.raises(ShapeError, match=f"{width - 1} features .* {width}"):
            load(width)


def test_real_rows_take_every_feature_that_there_is() -> None:
    whole = rows.diabetes(10, whiten=False).x  # of variance 1 each, before they are turned
    torch.testing.assert_close(whole.var(0).sum(), torch.tensor(10.0, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(rows.diabetes(10).x.T), torch.eye(10, dtype=torch.float64))
    assert rows.digits(61).x.shape[1] == 61
    assert rows.breast_cancer(30).x.shape[1] == 30
    assert rows.breast_cancer(29, label="column").x.shape[1] == 29
    with pytest.raises(ShapeError, match=r"29 features .* 30"):
        rows.breast_cancer(30, label="column")
    with pytest.raises(DataError, match=r"61 tokens .* 60"):
        closeness.documents(2, 61, 10, torch.Generator(), rows=whole[:60])


@pytest.mark.parametrize("norm", [0.5, 4.0])
def test_certificates_on_digits(norm: float) -> None:
    A, _ = rows.digits(20, norm=norm).contexts(5, 100, torch.Generator().manual_seed(0))
    for document in A:
        x = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x *= norm / x.norm()
        b = torch.full((100,), 0.01, dtype=torch.float64)
        b = 0.5 * b + 0.5 * (document @ x).softmax(0).flip(0)
        moved = SoftmaxRegression(document, b).step(x, 0.1)
        found = certificate(document, x, x2=moved)
        assert found.applies
        assert found.measured <= found.tight <= found.paper
        assert found.measured < 0.25 * found.tight  # flat rows of attention move far less than one half of what they could


def test_documents_of_real_rows() -> None:
    A, y = closeness.documents(3, 25, 20, torch.Generator().manual_seed(0), rows=rows.digits(20).x)
    assert A.shape == (3, 25, 20)
    torch.testing.assert_close(y.mean(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_of_transformers_is_studied_like_any_other(frozen: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = TransformersBackbone(transformers.GPT2LMHeadModel(config), frozen=frozen)
        learner = InContextDecoder(3, examples=8, backbone=backbone, lr=1e-2).eval()
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    sampler = TaskSampler(3, fixed=True)

    def tasks(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        d = sampler.draw(32, 8, torch.Generator().manual_seed(index))
        return d.xs, d.ys

    losses: list[float] = []
    learner.fit(tasks, lambda a, b: (a - b).square().mean(), steps=40, monitor=lambda _, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert all(torch.equal(before[name], p) for name, p in backbone.named_parameters()) == frozen
    xs, ys = tasks(99)
    with torch.no_grad():
        whole = learner.prefixes(xs, ys)
        torch.testing.assert_close(whole[:, 5:6], learner.predict(xs[:, :5], ys[:, :5], xs[:, 5:6]), atol=1e-5, rtol=1e-4)
        assert len(learner.network.hidden(xs, ys)) == 3
    near = measures.compare(learner, {"ols": LeastSquares()}, xs, ys, torch.randn(32, 12, 3))
    assert near[0].mspd > 0
    with pytest.raises(ShapeError, match="hidden_size"):
        TransformersBackbone(torch.nn.Linear(2, 2))


def test_learners_are_asked_without_dropout() -> None:
    """Whatever mode training left a learner in; and they are left in it."""

    class Dropping(torch.nn.Module):
        width = 16

        def forward(self, embedded: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(embedded, 0.5, self.training)

        def hidden(self, embedded: torch.Tensor) -> list[torch.Tensor]:
            return [embedded, self(embedded)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = InContextDecoder(3, examples=6, backbone=Dropping())  # type: ignore[arg-type]
    d = TaskSampler(3).draw(20, 6, torch.Generator().manual_seed(0))
    query, tests = d.xs[:, -1:], shifts.shifts(TaskSampler(3), 5, tasks=4, dtype=torch.float32)
    assert float(measures.spd(learner, learner, d.xs, d.ys).max()) == 0.0
    probed = torch.randn(20, 12, 3, generator=torch.Generator().manual_seed(1))
    assert measures.ilwd(learner, learner, d.xs[:, :-1], d.ys[:, :-1], probed) == pytest.approx(0.0, abs=1e-9)
    assert closeness.closeness(learner, learner, d.xs[:, :-1], d.ys[:, :-1], query).sensitivities == pytest.approx(0.0, abs=1e-9)
    assert shifts.evaluate(learner, tests) == shifts.evaluate(learner, tests)
    before, after = probes.read(learner, TaskSampler(3), targets=("moment",), width=8, steps=5)
    assert before.error == after.error  # nothing happens between these layers
    assert all(module.training for module in learner.modules())


def test_learners_without_weights_say_that_they_are_done() -> None:
    problem, told = InContextProblem(test_tasks=20), []
    data = problem.load(0)
    subject = lift(problem, "bayes_linear", {}, data, 0)
    problem.fit(subject, data.train, steps=5, seed=0, monitor=lambda step, _: told.append(step))
    assert told == [4, 5]  # what a plan needs to know how long a step takes
    found = problem.evaluate(subject, data.test)
    assert found["distance@bayes"].value == 0.0
    assert all(len(items.totals) == 20 for items in found.values())


def test_the_boolean_problem_counts_what_was_taught() -> None:
    problem = InContextBooleanProblem(taught=True, test_tasks=60)
    data = problem.load(0)
    found = problem.evaluate(NearestNeighbours(k=1), data.test)
    exact = problem.evaluate(Elimination(), data.test)
    assert exact["accuracy@taught"].value == exact["accuracy@last"].value == 1.0
    assert found["accuracy@taught"].value < 1.0
    assert len(found["accuracy"].totals) == data.facts["test_items"] == 60
