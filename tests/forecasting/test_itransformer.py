"""The inverted transformer: series are a set, attention alone relates them, and its weights can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from instar.checks.forecaster_world import panel
from instar.data import frames
from instar.data.panel import of_array
from instar.errors import DataError, ShapeError
from instar.forecasting import saved, windows
from instar.forecasting.itransformer import ITransformer
from instar.forecasting.itransformer_network import InvertedTransformer

SIZES = {"width": 16, "heads": 2, "hidden": 24, "dropout": 0.0}


def network(**knobs: object) -> InvertedTransformer:
    torch.manual_seed(0)
    return InvertedTransformer(12, 5, **{**SIZES, **knobs}).double()  # type: ignore[arg-type]


def x(series: int = 4) -> Tensor:
    return torch.randn(3, 12, series, dtype=torch.float64)


def test_series_are_a_set() -> None:
    given, order = x(6), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(network()(given[:, :, order]), network()(given)[:, :, order])


def test_a_series_that_is_shifted_and_stretched_is_forecast_so() -> None:
    given, scale, level = 100 * x(), torch.tensor([2.0, 0.5, 1.0, 7.0]), torch.tensor([1.0, -3.0, 0.0, 5.0])
    torch.testing.assert_close(network()(given * scale + level), network()(given) * scale + level, rtol=1e-5, atol=1e-4)


def test_a_constant_series_stays_where_it_is() -> None:
    given = x()
    given[:, :, 1] = 42.0
    assert float((network()(given)[:, :, 1].detach() - 42).abs().max()) < 0.02  # what the network says, times √1e-5


def test_any_number_of_series_and_the_reference_is_the_fast_form() -> None:
    module = network()
    for series in (1, 2, 50):
        given = x(series).requires_grad_()
        fast = module(given)
        slow, weights = module.attentions(given)
        assert fast.shape == (3, 5, series)
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(
            torch.autograd.grad(fast.sum(), given)[0], torch.autograd.grad(slow.sum(), given)[0], rtol=1e-6, atol=1e-9
        )
        assert [w.shape for w in weights] == [(3, 2, series, series)] * 2
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(3, 2, series, dtype=torch.float64))


@pytest.mark.parametrize(("attention", "alone"), [("none", True), ("full", False), ("bidirectional_performer", False)])
def test_only_attention_relates_series(attention: str, alone: bool) -> None:
    given = x()
    module = network(attention=attention).eval()
    jacobian = torch.autograd.functional.jacobian(lambda z: module(z).sum((0, 1)), given).abs().sum((1, 2))  # type: ignore[no-untyped-call]
    assert (float((jacobian - jacobian.diag().diag()).max()) < 1e-12) == alone


def test_absent_series_are_read_by_no_other() -> None:
    given, other = x(), x()
    there = torch.tensor([True, True, False, True]).expand(3, -1)
    other[:, :, there[0]] = given[:, :, there[0]]
    kept = there[0]
    torch.testing.assert_close(network()(given, present=there)[:, :, kept], network()(other, present=there)[:, :, kept])
    torch.testing.assert_close(network()(given, present=there)[:, :, kept], network()(given[:, :, kept]))


def test_marks_and_covariates_are_read_and_never_forecast() -> None:
    module, given = network(known=(True, False)), x()
    marks, beside = torch.randn(3, 17, 4).double(), torch.randn(3, 17, 2).double()
    plain = module(given, marks=marks, covariates=beside)
    assert plain.shape == (3, 5, 4)
    for what, change, differs in (("known", (slice(12, None), 0), True), ("unknown", (slice(12, None), 1), False)):
        other = beside.clone()
        other[:, change[0], change[1]] += 1.0
        assert bool((module(given, marks=marks, covariates=other) != plain).any()) == differs, what
    assert not torch.equal(module(given, marks=marks + 1, covariates=beside), plain)


def test_gradients_are_those_of_the_function() -> None:
    module = network(depth=1, norm=False)  # the mean of a window is no part of the gradient, by the authors' code
    assert torch.autograd.gradcheck(module, (x(3)[:1].requires_grad_(),), fast_mode=True)


def test_without_norm_it_is_the_plain_network() -> None:
    module, given = network(norm=False, attention="none", depth=1), x()
    layer = module.layers[0]
    z = layer.first(module.embedding(given.mT))  # type: ignore[operator]
    z = layer.second(z + layer.fall(torch.nn.functional.gelu(layer.rise(z))))  # type: ignore[operator]
    torch.testing.assert_close(module(given), module.head(module.last(z)).mT)


def test_a_share_of_the_series_is_trained_on_and_all_are_forecast() -> None:
    draw = np.random.default_rng(0)
    given = of_array(draw.normal(size=(60, 20)))
    forecaster = ITransformer(4, context=16, share=0.25, width=16, heads=2, hidden=16)
    forecaster.prepare(given)
    seen = []
    forecaster.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))  # type: ignore[union-attr]
    forecaster.learn(given, steps=3)
    assert seen == [5, 5, 5]
    assert forecaster.forecast(given, [30]).shape == (1, 4, 20)


def test_attention_between_series_is_read_at_an_origin() -> None:
    forecaster = ITransformer(4, context=16, width=16, heads=2, hidden=16).fit(panel(), steps=2)
    assert isinstance(forecaster, ITransformer)
    found = forecaster.attentions(panel(), 40)
    assert [w.shape for w in found] == [(2, 3, 3)] * 2
    torch.testing.assert_close(found[0].sum(-1), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="has weights"):
        ITransformer(4, context=16, attention="none").fit(panel(), steps=1).attentions(panel(), 40)  # type: ignore[attr-defined]


def test_known_covariates_tell_the_future_and_unknown_ones_are_not_read_ahead() -> None:
    draw, rows = np.random.default_rng(0), 400
    pulse = (draw.random(rows + 4) < 0.3).astype(float)
    hours = np.datetime64("2026-01-01T00") + np.arange(rows + 4).astype("timedelta64[h]")
    given = {"ds": hours[:rows], "y": pulse[:rows] + 0.01 * draw.normal(size=rows), "sale": pulse[:rows]}
    forecaster = ITransformer(4, context=16, width=32, heads=2, hidden=32, lr=3e-3, dropout=0.0)
    forecaster.fit(given, known=["sale"], steps=300)
    ahead = forecaster.predict(future={"ds": hours[rows:], "sale": pulse[rows:]})["itransformer"]
    assert float(np.abs(ahead - pulse[rows:]).max()) < 0.35
    with pytest.raises(DataError, match="future="):
        forecaster.predict()
    with pytest.raises(DataError, match="has no value"):
        forecaster.predict(future={"ds": hours[rows : rows + 2], "sale": pulse[rows : rows + 2]})
    whole = frames.panel({"ds": hours, "y": pulse, "sale": pulse})
    blind = ITransformer(4, context=16, width=16, heads=2, hidden=16).fit(whole.until(300), steps=2)
    np.testing.assert_array_equal(blind.forecast(whole, [200]), blind.forecast(whole.until(200), [200]))


def small(**given: object) -> ITransformer:
    return ITransformer(4, context=16, width=16, heads=2, hidden=16, **given)  # type: ignore[arg-type]


def promoted(rows: int, names: str = "a") -> dict[str, Any]:
    """A long table with hours, a temperature that all share and a price of each series that moves it."""
    draw = np.random.default_rng(len(names))
    hours = np.datetime64("2026-01-01T00") + np.arange(rows).astype("timedelta64[h]")
    price = draw.random(rows * len(names))
    return {
        "unique_id": np.repeat(np.array(list(names), dtype=object), rows),
        "ds": np.tile(hours, len(names)),
        "y": 10 * price + draw.normal(size=rows * len(names)),
        "temperature": np.tile(30 * draw.random(rows), len(names)),
        "price": price,
    }


def rows_of(table: dict[str, Any], kept: Any) -> dict[str, Any]:
    return {name: column[kept] for name, column in table.items()}


def test_covariates_go_by_their_names_and_not_by_their_place(tmp_path: Path) -> None:
    given = promoted(64)
    past, ahead = rows_of(given, slice(60)), rows_of(given, slice(60, None))
    del ahead["y"]
    forecaster = small().fit(past, known=["price"], steps=5)
    forecaster.save(tmp_path)
    expected = forecaster.predict(future=ahead)["itransformer"]
    swapped = {name: past[name] for name in ("ds", "price", "unique_id", "y", "temperature")}
    for one in (forecaster, saved.load(tmp_path)):
        np.testing.assert_array_equal(one.predict(frame=swapped, future=ahead)["itransformer"], expected)
    other = {"humidity" if name == "temperature" else name: column for name, column in past.items()}
    with pytest.raises(DataError, match=r"learnt the covariates temperature, price .* received humidity, price"):
        forecaster.predict(frame=other, future=ahead)
    whole = frames.panel(given)  # here the price is not said to be known, but that is for the forecaster to say
    np.testing.assert_allclose(forecaster.forecast(whole, [60])[0, :, 0], expected, rtol=1e-6)


def test_a_covariate_of_each_series_that_is_known_ahead_goes_on_from_another_history() -> None:
    given = promoted(64, "ab")
    late = given["ds"] >= given["ds"][60]
    past, ahead = rows_of(given, ~late), rows_of(given, late)
    forecaster = small().fit(past, known=["price"], steps=5)
    expected = forecaster.predict(future=ahead)
    found = forecaster.predict(frame=rows_of(past, np.r_[60:120, :60]), future=ahead)  # b stands first
    for one in "ab":
        again, first = (table["itransformer"][table["unique_id"] == one] for table in (found, expected))
        np.testing.assert_allclose(again, first, rtol=1e-5)
    with pytest.raises(DataError, match="Give future= with price"):
        forecaster.predict(frame=past)


def test_cross_validation_knows_the_future_that_the_forecaster_was_fitted_with() -> None:
    given = promoted(64, "ab")
    late = given["ds"] >= given["ds"][60]
    past, ahead = rows_of(given, ~late), rows_of(given, late)
    alone = small(dropout=0.0).fit(past, known=["price"]).predict(future=ahead)["itransformer"]
    fitted = small(dropout=0.0).fit(past, known=["price"], steps=1)
    for forecaster, known in ((fitted, None), (small(dropout=0.0), ["price"])):
        found = forecaster.cross_validation(given, known=known)
        np.testing.assert_allclose(found["itransformer"], alone, rtol=1e-5)
    blind = small(dropout=0.0).cross_validation(given)
    assert not np.allclose(blind["itransformer"], alone, rtol=1e-2)


def test_what_it_refuses() -> None:
    for knobs in ({"share": 0.0}, {"heads": 3, "width": 16}, {"dropout": 1.0}, {"attention": "softmax"}):
        with pytest.raises(ShapeError):
            ITransformer(4, **knobs)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="reads"):
        network()(torch.zeros(1, 11, 2, dtype=torch.float64))
    assert len(windows.origins_of(panel(), 16, 4)) == 72 - 16 - 4 + 1
