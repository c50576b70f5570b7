"""Positions: counts, scalings against transformers, linear biases against their formula, scaled RoPE, a cache with sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, catalogue, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.alibi import Alibi
from instar.mixers.local_window import LocalWindow
from instar.mixers.positions import Scaling, count_positions, frequencies, rotate, slopes, turn
from instar.mixers.scaled_rope import ScaledRope
from instar.mixers.softmax import Softmax
from instar.mixers.streaming_llm import StreamingLLM

B, T, D, H = 2, 50, 32, 4
K = D // H


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def make(kind: type, **knobs: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return kind(D, heads=H, **knobs).double(), 2 * torch.randn(B, T, D, dtype=torch.float64)


def test_counts_start_anew_at_a_reset_and_leave_padding_out() -> None:
    mask = torch.tensor([[True, False, True, True, False, True]])
    reset = torch.tensor([[False, False, False, True, False, False]])
    where, after = count_positions(torch.tensor([7]), 6, mask, reset)
    assert where.tolist() == [[7, 8, 8, 0, 1, 1]]
    assert after.tolist() == [2]
    where, after = count_positions(torch.tensor([7]), 0, mask[:, :0], reset[:, :0])
    assert (where.shape, after.tolist()) == ((1, 0), [7])


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("scale", [1.0, 2.0, 8.0])
@pytest.mark.parametrize(("scaling", "theirs"), [("linear", "linear"), ("ntk", "dynamic"), ("yarn", "yarn")])
def test_scalings_are_those_of_transformers(scaling: Scaling, theirs: str, scale: float, base: float) -> None:
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    width, trained = 64, 512
    told = {"rope_type": theirs, "rope_theta": base, "factor": 1.0 if theirs == "dynamic" else scale}
    told |= {"original_max_position_embeddings": trained} if theirs == "yarn" else {}
    longest = int(trained * scale) if theirs == "yarn" else trained
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=longest, rope_parameters=told
    )
    want, gain = rope_utils.ROPE_INIT_FUNCTIONS[theirs](config, torch.device("cpu"), seq_len=int(scale * trained))
    found, own = frequencies(width, base, scaling, scale, trained)
    torch.testing.assert_close(found.float(), want, rtol=2e-6, atol=0)
    assert own == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_a_scale_of_one_is_plain_rope_and_slow_pairs_are_interpolated(scaling: Scaling) -> None:
    plain = 10_000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    found, gain = frequencies(64, 10_000.0, scaling, 1.0, 512)
    close(found, plain)
    assert gain == 1.0
    found, _ = frequencies(64, 10_000.0, scaling, 4.0, 512)
    assert float(found[-1]) == pytest.approx(float(plain[-1]) / 4)  # a wave longer than the text: squeezed by all methods
    assert float(found[0]) == pytest.approx(float(plain[0]) / (4 if scaling == "linear" else 1))
    ratio = plain / found
    assert bool((ratio.diff() > -1e-9).all())
    assert 1 - 1e-9 <= float(ratio.min()) <= float(ratio.max()) <= 4 + 1e-9


def test_turned_products_know_distances_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 6, K, dtype=torch.float64).unbind()
    where = torch.arange(6).unsqueeze(0)
    frequency, gain = frequencies(K, 100.0, "yarn", 4.0, 16)
    found = []
    for shift in (0, 1000):
        a, b = turn((q, k), where + shift, frequency, gain)
        found.append(a @ b.mT)
    close(found[0], found[1])
    a, b = rotate((q, k), where, 100.0)
    close(a.norm(dim=-1), q.norm(dim=-1))
    close(turn((q,), where, frequency, gain)[0].norm(dim=-1), gain * q.norm(dim=-1))


def test_alibi_is_attention_under_its_bias() -> None:
    layer, x = make(Alibi)
    q, k, v = layer._project(x, torch.arange(T).unsqueeze(0))
    row = torch.arange(T)
    m = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
    close(slopes(H), m)
    bias = -m.view(-1, 1, 1) * (row.unsqueeze(1) - row)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(row.unsqueeze(1) < row, -torch.inf))
    want = layer.o_proj(y.transpose(1, 2).flatten(2))
    close(layer(x)[0], want)
    weights = layer.attention(x)
    close(weights @ v, y)


@pytest.mark.parametrize("kind", [Alibi, ScaledRope])
def test_a_sequence_anywhere_in_a_row_is_the_same(kind: type) -> None:
    """Translation: behind padding, and behind another sequence."""
    layer, x = make(kind, **({"trained": 8} if kind is ScaledRope else {}))
    want = layer(x[:, 20:])[0]
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 20] = True
    close(layer(x, reset=reset)[0][:, 20:], want)
    close(layer(x, mask=(torch.arange(T) >= 20).expand(B, T))[0][:, 20:], want)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_up_to_the_trained_length_nothing_changes_and_beyond_it_something_does(scaling: Scaling) -> None:
    layer, x = make(ScaledRope, scaling=scaling, trained=32)
    softmax = Softmax(D, heads=H).double()
    softmax.load_state_dict(layer.state_dict())
    y, plain = layer(x)[0], softmax(x)[0]
    assert torch.equal(layer(x[:, :32])[0], softmax(x[:, :32])[0])
    close(y[:, :32], plain[:, :32])
    assert bool(((y - plain)[:, 32:].abs().amax((0, 2)) > 1e-4).all())


def test_each_query_reads_at_the_scale_of_its_position() -> None:
    layer, x = make(ScaledRope, scaling="yarn", trained=8)
    for last, scale in ((7, 1.0), (8, 2.0), (15, 2.0), (16, 4.0), (31, 4.0), (32, 8.0), (49, 8.0)):
        fixed = ScaledRope(D, heads=H, scaling="yarn", trained=8, factor=scale).double()
        fixed.load_state_dict(layer.state_dict())
        close(layer(x)[0][:, last], fixed(x[:, : last + 1])[0][:, -1])
        close(layer.attention(x)[:, :, last, : last + 1], fixed.attention(x[:, : last + 1])[:, :, -1])
    assert layer.attention(x[:, :0]).shape == (B, H, 0, 0)


def test_a_fixed_factor_is_softmax_with_other_frequencies() -> None:
    """By interpolation it is the plain layer at positions divided by the factor."""
    layer, x = make(ScaledRope, scaling="linear", trained=8, factor=3.0)
    q, k, v = layer._project(x, torch.arange(T).unsqueeze(0))
    softmax = Softmax(D, heads=H).double()
    softmax.load_state_dict(layer.state_dict())
    want = softmax._project(x, torch.arange(T, dtype=torch.float64).unsqueeze(0) / 3)
    for part, other in zip((q, k, v), want, strict=True):
        close(part, other)
    close(layer(x)[0], layer.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ScaledRope, {"scaling": "longer"}),
        (ScaledRope, {"trained": 0}),
        (ScaledRope, {"factor": 0.5}),
        (ScaledRope, {"heads": 16, "scaling": "ntk"}),
        (ScaledRope, {"heads": 32}),
        (Alibi, {"heads": 3}),
        (StreamingLLM, {"window": 1}),
        (StreamingLLM, {"sinks": -1}),
        (StreamingLLM, {"heads": 32}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        kind(D, **{"heads": H, **wrong})


@pytest.mark.parametrize(("sinks", "window"), [(4, T - 4), (0, T), (3, 60)])
def test_a_cache_that_holds_all_is_softmax_attention(sinks: int, window: int) -> None:
    layer, x = make(StreamingLLM, sinks=sinks, window=window)
    softmax = Softmax(D, heads=H).double()
    softmax.load_state_dict(layer.state_dict())
    close(layer(x)[0], softmax(x)[0])


def test_without_sinks_it_is_a_local_window() -> None:
    layer, x = make(StreamingLLM, sinks=0, window=9)
    local = LocalWindow(D, heads=H, window=9).double()
    local.load_state_dict(layer.state_dict())
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.05
    close(layer(x)[0], local(x)[0])
    close(layer(x, mask=mask, reset=reset)[0][mask], local(x, mask=mask, reset=reset)[0][mask])


def test_positions_count_inside_the_cache() -> None:
    """The last token reads what softmax attention reads of the tokens in the cache alone, as if they stood side by side."""
    layer, x = make(StreamingLLM, sinks=3, window=8)
    softmax = Softmax(D, heads=H).double()
    softmax.load_state_dict(layer.state_dict())
    y = layer(x)[0]
    for t in (5, 10, 11, 30, T - 1):
        cache = x[:, : t + 1] if t < 11 else torch.cat([x[:, :3], x[:, t - 7 : t + 1]], 1)
        close(y[:, t], softmax(cache)[0][:, -1])


def test_an_endless_stream_keeps_its_precision_and_its_size() -> None:
    """After ten million tokens float32 is as near float64 as at the start: angles are measured inside the cache."""
    layer, x = make(StreamingLLM, sinks=3, window=8)
    _, state = layer(x)
    late = state._replace(position=state.position + 10_000_000, at=state.at + 10_000_000)
    want = layer(x[:, :20], state)[0]
    close(layer(x[:, :20], late)[0], want)
    single = StreamingLLM(D, heads=H, sinks=3, window=8)
    single.load_state_dict(layer.state_dict())
    halves = [part.float() if part.is_floating_point() else part for part in late]
    torch.testing.assert_close(single(x[:, :20].float(), type(late)(*halves))[0].double(), want, rtol=1e-4, atol=1e-5)
    assert states.nbytes(layer(x, late)[1]) == states.nbytes(state)


@pytest.mark.parametrize(("tokens", "sinks", "window"), [(1, 4, 8), (100, 4, 8), (130, 0, 64)])
def test_streaming_costs_follow_the_card(tokens: int, sinks: int, window: int) -> None:
    cost = cards.read(Path(__file__).parents[2] / "src/instar/mixers/streaming_llm.toml", cards.Card).cost
    assert cost is not None
    with FlopCounterMode(display=False) as counter:
        _, state = StreamingLLM(D, heads=H, sinks=sinks, window=window)(torch.randn(1, tokens, D))
    sizes = {"T": tokens, "D": D, "H": H, "sinks": sinks, "window": window}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(cost.flops, sizes))
    assert states.nbytes(state) == formula.evaluate(cost.state, sizes)


def test_one_query_of_many_heads_may_come_with_any_mask() -> None:
    """The way through plans is for masks of rows alone: a level of one query, and biases, go another."""
    torch.manual_seed(0)
    with torch.no_grad():
        for mixer, x, last in (
            (ScaledRope(64, heads=8, trained=256), torch.randn(16, 257, 64), 256),
            (Alibi(16, heads=4), torch.randn(8192, 1, 16), 0),
        ):
            whole, few = mixer(x)[0], mixer(x[:2])[0]
            torch.testing.assert_close(whole[:2, last], few[:, last], atol=1e-5, rtol=1e-5)


def test_claims_are_of_layers_that_know_the_length_they_are_trained_at() -> None:
    """A record of `trained` = 256 was read as one of a model that had been trained at 128: it squeezed nothing up to 2T."""
    card, known = catalogue.method("scaled_rope"), set()
    for claim in card.claims:
        for name in (claim.subject or card.slug, str(claim.against)):
            if name.partition(":")[0] == card.slug:
                known.add(catalogue.parse(name).arguments.get("trained", 256) == claim.conditions["length"])
    assert known == {True}


def test_yarn_needs_a_base_above_one() -> None:
    with pytest.raises(ShapeError, match="above 1 for yarn"):
        frequencies(8, 1.0, "yarn", 2.0, 64)
