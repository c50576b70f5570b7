"""Aaren: the layer against SDPA, the recurrence and closed forms; its encoder layer against torch's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.prefix_attention import merge_states
from instar.mixers.aaren import Aaren, AarenEncoder, AarenEncoderLayer

B, T, D, H = 3, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/aaren.toml", cards.Card)
KNOBS: list[dict[str, Any]] = [{}, {"bias": False}, {"num_queries": 3}, {"decay": 0.1}, {"learn_query": False}, {"block": 5}]


def make(seed: int = 0, **knobs: Any) -> tuple[Aaren, Tensor]:
    torch.manual_seed(seed)
    layer = Aaren(D, heads=H, **knobs).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-11) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_forward_equals_reference_in_values_states_and_gradients(knobs: dict[str, Any], masked: bool, resets: bool) -> None:
    layer, x = make(**knobs)
    mask = torch.rand(B, T) > 0.3 if masked else None
    reset = torch.rand(B, T) < 0.1 if resets else None
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        _, state = layer(z[:, :6])
        y, state = function(
            z[:, 6:], state, mask=None if mask is None else mask[:, 6:], reset=None if reset is None else reset[:, 6:]
        )
        loss = y.sin().sum() + state.w.sum()
        weights = [p for p in layer.parameters() if p.requires_grad]
        found.append((y, tuple(state), torch.autograd.grad(loss, [z, *weights], materialize_grads=True)))
    close(found[0], found[1])


def test_equals_torch_attention_with_the_query_token_in_every_place() -> None:
    layer, x = make()
    attention = nn.MultiheadAttention(D, H, batch_first=True).double()
    attention.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "query"})
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    token = layer.query.unsqueeze(0).expand(B, T, D)
    expected, _ = attention(token, x, x, attn_mask=causal, need_weights=False)
    y, _ = layer(x)
    close(y, expected)
    names = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    mine = torch.autograd.grad(y.sin().sum(), [layer.get_parameter(n) for n in names] + [layer.query])
    theirs = torch.autograd.grad(expected.sin().sum(), [attention.get_parameter(n) for n in names] + [layer.query])
    close(mine, theirs)


def test_takes_over_the_weights_of_torch_attention() -> None:
    layer, _ = make()
    query = layer.query.detach().clone()
    attention = nn.MultiheadAttention(D, H).double()
    layer.load_attention(attention.state_dict())
    close(layer.in_proj_weight, attention.in_proj_weight)
    close(layer.out_proj.weight, attention.out_proj.weight)
    close(layer.query, query)
    with pytest.raises(ShapeError, match="received"):
        layer.load_attention(nn.MultiheadAttention(2 * D, H).state_dict())
    with pytest.raises(ShapeError, match="num_queries=1"):
        Aaren(D, num_queries=2).load_attention(attention.state_dict())


def test_the_difference_to_a_transformer_layer_is_one_query_token() -> None:
    count = {cls: sum(p.numel() for p in cls(512, 8).parameters()) for cls in (AarenEncoderLayer, nn.TransformerEncoderLayer)}
    assert count == {AarenEncoderLayer: 3_152_896, nn.TransformerEncoderLayer: 3_152_384}


@pytest.mark.parametrize("t", [0, 1, 13, T])
def test_prefix_then_steps_is_the_whole_at_constant_size(t: int) -> None:
    layer, x = make(num_queries=2)
    assert CARD.cost is not None
    whole, end = layer(x)
    parts, state = layer(x[:, :t])
    for i in range(t, T):
        y, state = layer(x[:, i : i + 1], state)
        parts = torch.cat([parts, y], dim=1)
        size = formula.evaluate(CARD.cost.state, {"T": i, "D": D, "H": H, "num_queries": 2})
        assert states.nbytes(state) == 2 * B * size  # float64
    close((parts, state), (whole, end))


def test_states_of_two_machines_merge_to_that_of_the_stream() -> None:
    layer, x = make()
    a, b = layer(x[:, :17])[1], layer(x[:, 17:])[1]
    close(Aaren.merge_states(a, b), layer(x)[1])
    close(merge_states(b, a), layer(x)[1])


def test_a_zero_query_is_the_mean_of_the_prefix() -> None:
    layer, x = make(learn_query=False)
    v = F.linear(x, layer.in_proj_weight[2 * D :], layer.in_proj_bias[2 * D :])
    mean = v.cumsum(1) / torch.arange(1, T + 1, dtype=x.dtype).unsqueeze(1)
    close(layer(x)[0], layer.out_proj(mean))
    assert not layer.query.requires_grad


def test_several_queries_are_layers_side_by_side() -> None:
    layer, x = make(num_queries=2)
    total = torch.zeros_like(x)
    for r in range(2):
        single = Aaren(D, heads=H).double()
        weights = layer.state_dict() | {
            "query": layer.query[r : r + 1],
            "out_proj.weight": layer.out_proj.weight[:, r * D : (r + 1) * D],
        }
        single.load_state_dict(weights)
        total = total + single(x)[0] - single.out_proj.bias
    close(layer(x)[0], total + layer.out_proj.bias)


def test_without_positions_the_order_of_the_past_does_not_matter() -> None:
    layer, x = make()
    order = torch.cat([torch.randperm(T - 1), torch.tensor([T - 1])])
    close(layer(x[:, order])[0][:, -1], layer(x)[0][:, -1])


def test_initial_weights_are_those_of_torch_attention() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4)
    torch.manual_seed(0)
    layer = Aaren(64, heads=4)
    bound = (6 / (4 * 64)) ** 0.5  # Xavier over the three projections at once
    assert layer.in_proj_weight.abs().max() <= bound
    assert abs(layer.in_proj_weight.std() - attention.in_proj_weight.std()) < 0.005
    assert layer.in_proj_bias is not None
    assert not layer.in_proj_bias.any()
    assert 0.01 < layer.query.std() < 0.03


@pytest.mark.parametrize(("T_", "block", "R"), [(512, 32, 1), (100, 64, 2), (20, 32, 1)])
def test_flops_follow_the_card(T_: int, block: int, R: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        Aaren(128, heads=4, block=block, num_queries=R)(torch.randn(1, T_, 128))
    expected = formula.evaluate(CARD.cost.flops, {"T": T_, "D": 128, "H": 4, "block": block, "num_queries": R})
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_compiles_in_one_graph_with_the_same_result() -> None:
    layer, x = make()
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    state = layer(x)[1]
    close(compiled(x, state, mask=mask, reset=reset), layer(x, state, mask=mask, reset=reset))
    close(compiled(x[:, :1], state), layer(x[:, :1], state))


def test_bfloat16_autocast_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = Aaren(D), torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    assert {leaf.dtype for leaf in states.leaves(state)} == {torch.float32}
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0, atol=3e-2)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"num_queries": 0}, {"block": 1}, {"decay": -1.0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Aaren(D, **wrong)


def encoder(**knobs: Any) -> tuple[AarenEncoder, Tensor]:
    torch.manual_seed(0)
    stack = AarenEncoder(D, H, 2, dim_feedforward=32, dropout=0.0, batch_first=True, norm=nn.LayerNorm(D), **knobs).double()
    return stack, torch.randn(B, 12, D, dtype=torch.float64)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_stack_streams_what_it_computes_at_once(norm_first: bool) -> None:
    stack, x = encoder(norm_first=norm_first)
    state: Any = stack.init_state(B)
    steps = []
    for t in range(12):
        y, state = stack.stream(x[:, t : t + 1], state)
        steps.append(y)
    whole, end = stack.stream(x)
    close((torch.cat(steps, 1), state), (whole, end))
    close(stack(x), whole)


def _as_attention(layer: Aaren, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return layer(query.transpose(0, 1))[0].transpose(0, 1), None


def test_the_layer_is_torchs_layer_but_for_its_attention() -> None:
    torch.manual_seed(0)
    for norm_first in (False, True):
        options: dict[str, Any] = {"dim_feedforward": 32, "dropout": 0.0, "activation": "gelu", "norm_first": norm_first}
        torchs, mine = nn.TransformerEncoderLayer(D, H, **options), AarenEncoderLayer(D, H, **options)
        missing, unexpected = mine.load_state_dict(torchs.state_dict(), strict=False)
        assert (missing, unexpected) == (["self_attn.query"], [])
        x = torch.randn(7, B, D)
        torchs.self_attn.forward = partial(_as_attention, mine.self_attn)  # type: ignore[method-assign]
        close(mine(x), torchs(x), 1e-6)


def test_stands_in_torchs_encoder_with_padding_and_causal_mask() -> None:
    torch.manual_seed(0)
    layer = AarenEncoderLayer(D, H, 32, 0.0, batch_first=True)
    with pytest.warns(UserWarning, match="nested"):
        stack = nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 9, D)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 6:] = True
    y = stack(x, src_key_padding_mask=padding)
    close(y[0, :6], stack(x[:1, :6])[0], 1e-5)
    close(stack(x, mask=nn.Transformer.generate_square_subsequent_mask(9)), stack(x), 1e-6)
    with pytest.raises(ShapeError, match="causal"):
        layer(x, src_mask=torch.zeros(9, 9))


def test_deep_states_do_not_merge() -> None:
    stack, x = encoder()
    _, state = stack.stream(x)
    with pytest.raises(ShapeError, match="one layer; this one has 2"):
        stack.merge(state, state)
    single = AarenEncoder(D, H, 1, batch_first=True).double()
    a, b = single.stream(x[:, :5])[1], single.stream(x[:, 5:])[1]
    close(single.merge(a, b), single.stream(x)[1])
