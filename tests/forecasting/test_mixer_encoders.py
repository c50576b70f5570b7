"""Encoders of forecasters: patches of one series, points of all, lags of a season."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instar import catalogue
from instar.checks.forecaster_world import panel, table
from instar.data.panel import of_array
from instar.errors import DataError, ShapeError
from instar.forecasting import windows
from instar.forecasting.autoformer import Autoformer
from instar.forecasting.autoformer_network import AutoCorrelation, AutoformerNetwork, SeasonalNorm, correlation, rolled
from instar.forecasting.layers import Attention
from instar.forecasting.mixer_encoder import MixerEncoder
from instar.forecasting.patches import PatchEncoder, PatchNetwork, patches_of
from instar.forecasting.patchtst import PatchTST
from instar.forecasting.transformer import Transformer
from instar.forecasting.transformer_network import PointTransformer
from instar.problems.forecast import ForecastProblem


def test_attention_written_out_is_the_fast_form_values_and_gradients() -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 8).double().requires_grad_(), torch.randn(2, 7, 8).double()
    for causal, other, present in ((True, None, None), (False, memory, torch.rand(2, 7) < 0.5)):
        attention = Attention(8, 2, causal=causal).double()
        fast, (slow, _) = attention(x, other, present=present), attention.weighed(x, other, present=present)
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(torch.autograd.grad(fast.sum(), x)[0], torch.autograd.grad(slow.sum(), x)[0])


def test_patches_are_cut_from_the_prolonged_window_and_series_stay_apart() -> None:
    assert patches_of(96, 16, 8) == 12
    seen: list[torch.Tensor] = []

    class Sees(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            seen.append(z)
            return z

    module = PatchNetwork(Sees(), 20, 3, width=4, patch=4, stride=4, dropout=0.0).double()
    with torch.no_grad():
        module.embedding.weight.copy_(torch.eye(4))
        module.positions.zero_()
    x = torch.randn(1, 20, 2).double()
    module(x)
    scaled = (x - x.mean(1)) / (x.var(1, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(seen[0][1, :5].flatten(), scaled[0, :, 1])
    torch.testing.assert_close(seen[0][1, 5], scaled[0, -1:, 1].expand(4))
    whole = PatchNetwork(PatchEncoder(8, 1, 2, 16, 0.0), 20, 3, width=8, patch=4, stride=2, dropout=0.0).double().eval()
    other = torch.cat([x[:, :, :1], torch.randn(1, 20, 3).double()], dim=2)
    torch.testing.assert_close(whole(other)[:, :, 0], whole(x)[:, :, 0])
    with pytest.raises(ShapeError, match="1 to 20 rows"):
        patches_of(20, 21, 4)


def test_a_mixer_that_reads_one_side_and_one_that_reads_both_stand_in_one_encoder() -> None:
    for mixer in ("gla", "bidirectional_performer", "aaren:four_queries"):
        found = MixerEncoder(4, context=16, mixer=mixer, patch=4, stride=4, width=16, heads=2, hidden=16).fit(panel(), steps=2)
        assert np.isfinite(found.forecast(panel(), [40])).all()
    with pytest.raises(ShapeError, match="mixer of the catalogue"):
        MixerEncoder(4, mixer="rlinear")


def test_the_problem_takes_mixers_as_encoders() -> None:
    problem = ForecastProblem(horizon=6, context=24)
    data = problem.load(0)
    address = catalogue.parse("gla:no_gate")
    build = catalogue.Build(address.card, catalogue.load(address.card), address.arguments)
    subject = problem.encoder(build, data, 0)
    problem.fit(subject, data.train, steps=2, seed=0)
    found = problem.evaluate(subject, data.test)
    assert sum(found["mse"].weights) == data.facts["test_windows"] * 6 * 4
    assert subject.mixing.arguments == address.arguments


def test_the_transformer_reads_marks_of_time_and_only_the_series_it_knows() -> None:
    module = PointTransformer(3, 16, 4, width=8, heads=2, hidden=8, marks=4, dropout=0.0)
    x, marks = torch.randn(2, 16, 3), torch.randn(2, 20, 4)
    assert module(x, marks=marks).shape == (2, 4, 3)
    later = marks.clone()
    later[:, -1] += 1
    assert not torch.equal(module(x, marks=marks), module(x, marks=later))
    fitted = Transformer(4, context=16, width=8, heads=2, hidden=8).fit(table(), steps=1)
    with pytest.raises(DataError, match="takes no others"):
        fitted.predict(frame=table(names=("a", "c", "b")))


def test_auto_correlation_by_fft_is_the_sum_around_the_circle() -> None:
    q, k = torch.randn(2, 12, 3).double(), torch.randn(2, 12, 3).double()
    direct = torch.stack([(q * k.roll(lag, 1)).sum(1) for lag in range(12)], dim=1)
    torch.testing.assert_close(correlation(q, k), direct)
    torch.testing.assert_close(correlation(q.roll(5, 1), k.roll(5, 1)), direct)  # only their distance counts
    v, lags, weights = torch.randn(2, 12, 3).double(), torch.tensor([[1, 5], [0, 11]]), torch.rand(2, 2).double()
    expected = torch.stack([sum(weights[b, i] * v[b].roll(-int(lags[b, i]), 0) for i in range(2)) for b in range(2)])  # type: ignore[arg-type]
    torch.testing.assert_close(rolled(v, lags, weights), expected)


def test_lags_found_in_a_periodic_input_are_multiples_of_its_period_and_a_shift_changes_nothing_but_the_place() -> None:
    torch.manual_seed(0)
    module = AutoCorrelation(8, 2, factor=1.0).eval()
    with torch.no_grad():
        module.key.weight.copy_(module.query.weight)
        module.key.bias.copy_(module.query.bias)
    wave = torch.randn(1, 6, 8).repeat(1, 8, 1)
    found = correlation(module.query(wave), module.key(wave)).mean(-1)
    assert set((found.topk(3, dim=1).indices % 6).flatten().tolist()) == {0}
    torch.testing.assert_close(module(wave.roll(4, 1)), module(wave).roll(4, 1), rtol=1e-4, atol=1e-5)


def test_what_is_left_of_a_constant_window_is_its_trend() -> None:
    norm = SeasonalNorm(8)
    torch.testing.assert_close(norm(torch.randn(2, 9, 8)).mean(1), torch.zeros(2, 8), atol=1e-6, rtol=0)
    module = AutoformerNetwork(2, 16, 4, width=8, heads=2, hidden=8, kernel=5).eval()
    with torch.no_grad():
        module.head.bias.zero_()
        module.head.weight.zero_()
        module.trend.weight.zero_()
    torch.testing.assert_close(module(torch.full((1, 16, 2), 3.0)), torch.full((1, 4, 2), 3.0))


@pytest.mark.parametrize("kind", [PatchTST, Transformer, Autoformer])
def test_each_learns_waves(kind: type) -> None:
    t = np.arange(260)
    waves = np.stack([np.sin(2 * np.pi * t / 8), np.cos(2 * np.pi * t / 12)], axis=1)
    sizes = {"kernel": 5} if kind is Autoformer else {"patch": 8, "stride": 4} if kind is PatchTST else {}
    forecaster = kind(6, context=24, width=16, heads=2, hidden=32, depth=1, dropout=0.0, lr=1e-2, **sizes)
    forecaster.fit(waves[:200], steps=60)
    origins = np.arange(200, 254)
    error = windows.after(waves, origins, 6).numpy() - forecaster.forecast(of_array(waves), origins.tolist())
    assert float((error**2).mean()) < 0.2  # the waves' variance is 0.5
