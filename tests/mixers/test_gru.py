"""The GRU: torch's fused unit over packed segments against the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.gru import GRU, GRUState

B, T, D = 4, 17, 12
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/gru.toml", cards.Card)


def make(seed: int = 0) -> tuple[GRU, Tensor]:
    torch.manual_seed(seed)
    return GRU(D).double(), torch.randn(B, T, D, dtype=torch.float64)


def equal(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def choose(masked: bool, resets: bool) -> dict[str, Tensor | None]:
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.2
    mask[1] = False  # a row of padding only
    mask[2, 9:] = False
    reset[2, 12] = True  # a reset after the last real token: the row ends empty
    return {"mask": mask if masked else None, "reset": reset if resets else None}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_forward_equals_reference_in_values_state_and_gradients(masked: bool, resets: bool) -> None:
    layer, x = make()
    options = choose(masked, resets)
    h = torch.randn(B, D, dtype=torch.float64)
    weight, end_weight = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, D, dtype=torch.float64)
    found = []
    for function in (layer.forward, layer.reference):
        z, start = x.clone().requires_grad_(), h.clone().requires_grad_()
        y, state = function(z, GRUState(start), **options)
        y = y if options["mask"] is None else y.masked_fill(~options["mask"].unsqueeze(-1), 0.0)
        loss = (y * weight).sum() + (state.hidden * end_weight).sum()
        found.append((y, state.hidden, torch.autograd.grad(loss, [z, start, *layer.parameters()])))
    equal(found[0], found[1])


def test_equals_torchs_module() -> None:
    layer, x = make()
    other = nn.GRU(D, D, batch_first=True).double()
    other.load_state_dict({f"{name}_l0": value for name, value in layer.cell.state_dict().items()})
    y, state = layer(x)
    expected, end = other(x)
    equal((y, state.hidden), (expected, end[0]))


@pytest.mark.parametrize("size", [1, 5])
def test_any_split_gives_the_whole(size: int) -> None:
    layer, x = make()
    options = choose(True, True)
    whole, end = layer(x, **options)
    state, parts = None, []
    for i in range(0, T, size):
        y, state = layer(x[:, i : i + size], state, **{k: v[:, i : i + size] for k, v in options.items() if v is not None})
        parts.append(y)
    assert options["mask"] is not None
    equal((torch.cat(parts, 1)[options["mask"]], state), (whole[options["mask"]], end))


def test_padding_and_resets_have_closed_forms() -> None:
    layer, x = make()
    h = GRUState(torch.randn(B, D, dtype=torch.float64))
    nothing = torch.zeros(B, T, dtype=torch.bool)
    y, state = layer(torch.full_like(x, float("nan")), h, mask=nothing)
    assert y.isfinite().all()
    equal(state, h)
    start = nothing.clone()
    start[:, 3] = True
    equal(layer(x, h, mask=nothing, reset=start)[1], layer.init_state(B))
    y, state = layer(x, h, reset=start)
    equal((y[:, 3:], state), layer(x[:, 3:]))


def test_a_long_and_many_short_segments_need_no_padded_copy() -> None:
    torch.manual_seed(0)
    layer, x = GRU(4), torch.randn(2, 3000, 4)
    reset = torch.zeros(2, 3000, dtype=torch.bool)
    reset[1] = True  # every token a sequence of its own, beside one of 3000 tokens
    with torch.no_grad():
        y, _ = layer(x, reset=reset)
        torch.testing.assert_close(y[0], layer(x[:1])[0][0])
        torch.testing.assert_close(y[1], layer(x[1].unsqueeze(1))[0][:, 0])


def test_an_open_update_gate_keeps_the_state() -> None:
    layer, x = make()
    with torch.no_grad():
        layer.cell.bias_ih[D : 2 * D] = 1e4  # z = 1
    h = GRUState(torch.randn(B, D, dtype=torch.float64))
    equal(layer(x, h)[1], h)


def test_compiles_in_one_graph_with_the_same_result() -> None:
    layer, x = make()
    x, options = x[:, :6], {k: v[:, :6] for k, v in choose(True, True).items() if v is not None}
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    equal(compiled(x), layer(x))
    equal(compiled(x, **options)[1], layer(x, **options)[1])


def test_empty_input_and_state_bytes() -> None:
    layer = GRU(D)
    y, state = layer(torch.zeros(1, 0, D))
    assert y.shape == (1, 0, D)
    assert CARD.cost is not None
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, {"T": 0, "D": D, "H": 1})
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(torch.randn(1, 3, D), state)
    assert state.hidden.dtype == torch.float32


def test_flops_follow_the_card() -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        GRU(D).reference(torch.randn(1, T, D))
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, {"T": T, "D": D, "H": 1})


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match="width=0"):
        GRU(0)
