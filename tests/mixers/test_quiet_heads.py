"""Mixers whose heads can do nothing: each is softmax attention at one end of its settings, and leaves it in its own way."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar.errors import ShapeError
from instar.mixers.clipped_softmax import ClippedSoftmax
from instar.mixers.gated_softmax import GatedSoftmax
from instar.mixers.head_gate import FORMS, Form, HeadGate
from instar.mixers.sinks import Sinks
from instar.mixers.softmax import Softmax
from instar.mixers.softmax1 import Softmax1

B, T, D, H = 3, 19, 32, 4
FOLDER = Path(__file__).parents[2] / "src/instar/mixers"
KINDS = {"clipped_softmax": ClippedSoftmax, "gated_softmax": GatedSoftmax, "softmax1": Softmax1, "sinks": Sinks}


def x(tokens: int = T) -> Tensor:
    return torch.randn(B, tokens, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def like(kind: Any, vanilla: Softmax, **knobs: Any) -> Any:
    """A layer with the projections of `vanilla`."""
    layer = kind(D, heads=H, **knobs).double()
    layer.load_state_dict(vanilla.state_dict(), strict=False)
    return layer


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture
def vanilla() -> Softmax:
    torch.manual_seed(0)
    return Softmax(D, heads=H).double()


@pytest.mark.parametrize("way", ["forward", "reference"])
@pytest.mark.parametrize(("kind", "knobs"), [(ClippedSoftmax, {"alpha": 0.0}), (Sinks, {"start": -9e3})])
def test_one_end_is_softmax(vanilla: Softmax, way: str, kind: Any, knobs: dict[str, Any]) -> None:
    with torch.no_grad():
        close(getattr(like(kind, vanilla, **knobs), way)(x())[0], vanilla(x())[0])


@pytest.mark.parametrize("form", FORMS)
def test_an_open_gate_is_softmax_and_a_shut_one_nothing(vanilla: Softmax, form: Form) -> None:
    layer = like(GatedSoftmax, vanilla, gate=form)
    with torch.no_grad():
        layer.gate.bias.fill_(50.0)
        close(layer(x())[0], vanilla(x())[0])
        layer.gate.bias.fill_(-50.0)
        close(layer(x())[0], torch.zeros(B, T, D, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_gates_start_near_pi_and_count_as_the_paper_says(form: Form) -> None:
    torch.manual_seed(0)
    gate = HeadGate(D, H, form=form, start=0.25, hidden=3)
    K = D // H
    expected = {"linear": H * (K + 1), "mlp": H * (3 * (K + 2) + 1), "all_heads": H * (D + 1), "elementwise": D * (D + 1)}
    assert sum(p.numel() for p in gate.parameters()) == expected.get(form, H)
    with torch.no_grad():
        found = gate(torch.zeros(1, 2, D) if form != "mlp" else x().float())
    assert found.shape[-2:] == ((H, K) if form == "elementwise" else (H, 1))
    torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=0, atol=0.2 if form == "mlp" else 1e-6)


def test_the_gate_of_a_head_reads_its_own_slice() -> None:
    """linear is all_heads with a block-diagonal matrix; mlp is a small network for each head."""
    linear, dense, mlp = (HeadGate(D, H, form=form).double() for form in ("linear", "all_heads", "mlp"))
    with torch.no_grad():
        dense.weight.copy_(torch.block_diag(*linear.weight.unsqueeze(1)))
        close(dense(x()), linear(x()))
        for h, slice in enumerate(x().split(D // H, -1)):
            hidden = torch.relu(slice @ mlp.hidden_weight[h].T + mlp.hidden_bias[h])
            close(mlp(x())[:, :, h, 0], torch.sigmoid(hidden @ mlp.weight[h] + mlp.bias[h]))


@pytest.mark.parametrize("form", FORMS)
def test_fine_tuning_starts_as_the_trained_layer(vanilla: Softmax, form: Form) -> None:
    torch.manual_seed(1)
    layer = like(GatedSoftmax, vanilla, gate=form, start=0.3, fine_tuning=True)
    with torch.no_grad():
        want = vanilla(x())[0]
        off = float((layer(x())[0] - want).abs().max() / want.abs().max())
        assert off < 0.1  # weights of 0.01 at inputs of size 1 to √D
        if form != "constant":
            assert off > 0
            layer.gate.weight.zero_()
        close(layer(x())[0], want, 1e-7)  # the bias was made in float32


def test_clipping_is_set_by_the_training_length_alone(vanilla: Softmax) -> None:
    assert ClippedSoftmax(D, alpha=3.2, length=128).gamma == pytest.approx(-0.025)
    layer = like(ClippedSoftmax, vanilla, alpha=4.0, length=16)
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        whole, _ = layer(x())
        state, parts = None, []
        for token in x().split(1, 1):
            y, state = layer(token, state)
            parts.append(y)
    assert "set for 16 tokens and attends over 19" in str(told[0].message)
    assert len(told) == 1 + 3  # the whole, and each token after the sixteenth
    close(torch.cat(parts, 1), whole)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        layer(x(16))


def test_rows_give_at_most_one_and_masked_tokens_nothing(vanilla: Softmax) -> None:
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, :4] = mask[1, 9] = False
    with torch.no_grad():
        plain = vanilla.attention(x())
        close(plain.sum(-1), torch.ones(B, H, T, dtype=torch.float64))
        for kind, knobs in ((ClippedSoftmax, {"length": 19}), (Softmax1, {}), (Sinks, {"start": 1.0})):
            layer = like(kind, vanilla, **knobs)
            weights = layer.attention(x(), mask=mask)
            assert (weights.sum(-1) < 1).any()
            assert (weights.sum(-1) <= 1 + 1e-12).all()
            assert (weights.triu(1) == 0).all()
            assert (weights[0, :, 4:, :4] == 0).all()
            assert (weights[1, :, 10:, 9] == 0).all()


def test_attention_is_what_the_layer_reads_by(vanilla: Softmax) -> None:
    for kind in (Softmax, *KINDS.values()):
        layer = like(kind, vanilla)
        with torch.no_grad():
            v = layer.v_proj(x()).unflatten(-1, (H, -1)).transpose(1, 2)
            read = (layer.attention(x()) @ v).transpose(1, 2)
            close(layer.o_proj(layer.emit(x(), read).flatten(2)), layer(x())[0])


@pytest.mark.parametrize("slug", KINDS)
def test_flops_follow_the_card(slug: str) -> None:
    card = cards.read(FOLDER / f"{slug}.toml", cards.Card)
    assert card.cost is not None
    with FlopCounterMode(display=False) as counter:
        KINDS[slug](D).reference(torch.randn(1, 40, D))
    assert counter.get_total_flops() == formula.evaluate(card.cost.flops, {"T": 40, "D": D, "H": 4, "kv_heads": 0})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ClippedSoftmax, {"alpha": -1.0}),
        (ClippedSoftmax, {"length": 0}),
        (ClippedSoftmax, {"zeta": 0.9}),
        (GatedSoftmax, {"gate": "none"}),
        (GatedSoftmax, {"start": 1.0}),
        (GatedSoftmax, {"hidden": 0}),
        (Sinks, {"start": -float("inf")}),
        (Softmax1, {"heads": 5}),
    ],
)
def test_impossible_settings_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        kind(D, **wrong)
