"""The outlier report: closed forms of its measures, planted outliers, and a model that stays as it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from instar.checks.transform_models import conv1d, encoder
from instar.compression.outliers import kurtosis, outlier_report
from instar.errors import DataError
from instar.receipt import fingerprint


def test_kurtosis_of_known_distributions() -> None:
    torch.manual_seed(0)
    assert kurtosis(torch.randn(400_000)) == pytest.approx(3, abs=0.05)
    assert kurtosis(torch.distributions.Laplace(0.0, 1.0).sample((400_000,))) == pytest.approx(6, abs=0.4)
    assert kurtosis(torch.tensor([1.0, -1.0] * 5000)) == pytest.approx(1, abs=1e-3)
    assert kurtosis(torch.full((10,), 2.0)) == 0


def test_a_planted_outlier_is_found_in_its_channel_and_token_and_breaks_a_tensor_scale_alone() -> None:
    model = nn.Sequential(nn.Linear(128, 32))
    x = torch.randn(2, 20, 128, generator=torch.Generator().manual_seed(1))
    x[:, 5, 77] = 3000
    found = outlier_report(model, [x])
    facts = found.tensors["0.input"]
    assert (facts.channel, facts.token, facts.kind) == (77, 5, "linear_input")
    assert facts.max_norm == 3000
    assert facts.kurtosis > 100
    assert outlier_report(model, [torch.randn(2, 20, 128)]).broken() == []
    x[:, 5, 77] = 40  # one value that coarsens all the others, without having most of the power itself
    hurt = outlier_report(model, [x])
    errors = hurt.tensors["0.input"].int8_error
    assert errors["per_tensor"] > 5 * errors["per_token"] > 5 * errors["block_64"] / 4


def test_padding_counts_for_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.up(x)

    model, x = Masked(), torch.randn(2, 6, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    hurt = x.masked_fill(mask[..., None] == 0, 1e6)
    a, b = (outlier_report(model, [{"x": v, "attention_mask": mask}]) for v in (x, hurt))
    assert a.json() == b.json()
    alone = [
        outlier_report(model, [{"x": x[i : i + 1, m.bool()], "attention_mask": m[None, m.bool()]}]) for i, m in enumerate(mask)
    ]
    mean = sum(one.tensors["up.input"].kurtosis for one in alone) / 2
    assert a.tensors["up.input"].kurtosis == pytest.approx(mean)


def test_the_model_stays_as_it_was_and_tells_its_sinks() -> None:
    model = conv1d()
    if model is None:
        pytest.skip("transformers is not installed")
    model.train()
    before = fingerprint(model)
    settings = dict(vars(model.config))
    ids = torch.arange(48).view(2, 24) % 64
    found = outlier_report(model, [{"input_ids": ids}, {"input_ids": ids.flip(1)}])
    assert fingerprint(model) == before
    assert all(module.training for module in model.modules())
    assert dict(vars(model.config)) == settings
    assert found.sequences == 4
    assert set(found.sink_mass) == {"layer 0"}
    assert 0 < found.sink_mass["layer 0"] < 1
    assert json.loads(json.dumps(found.json()))["tensors"]["transformer.h.0.mlp.c_fc.input"]["max_norm"] > 0
    assert "per token" in found.text()


def test_a_uniform_attention_has_a_sink_of_one_over_its_keys() -> None:
    from instar.compression.outliers import _sink

    weights = torch.full((1, 2, 8, 8), 1 / 8)
    assert _sink(weights, None) == pytest.approx(1 / 8)
    assert _sink(weights, torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])) == pytest.approx(1 / 8)


def test_nothing_to_report() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        outlier_report(encoder(), [])
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(DataError, match="NaN"):
        outlier_report(model, [torch.full((1, 2, 4), torch.nan)])
