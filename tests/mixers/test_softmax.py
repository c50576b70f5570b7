"""Softmax attention: SDPA against the written-out mask, the rotation's closed form, and the cache as a value."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.softmax import BLOCK, Softmax, rotate

B, T, D = 3, 19, 32
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/softmax.toml", cards.Card)


def make(seed: int = 0, **knobs: Any) -> tuple[Softmax, Tensor]:
    torch.manual_seed(seed)
    return Softmax(D, **knobs).double(), torch.randn(B, T, D, dtype=torch.float64)


def equal(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("knobs", [{}, {"kv_heads": 2}, {"kv_heads": 1, "bias": True}, {"rope": False}])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("past", [0, 5])
def test_forward_equals_reference_in_values_and_gradients(knobs: dict[str, Any], masked: bool, resets: bool, past: int) -> None:
    layer, x = make(**knobs)
    mask = torch.rand(B, T) > 0.3 if masked else None
    reset = torch.rand(B, T) < 0.15 if resets else None
    weight = torch.randn(B, T, D, dtype=torch.float64)
    if mask is not None:
        weight = weight * mask.unsqueeze(-1)
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        _, state = layer(z[:, :past]) if past else (None, None)
        y, state = function(z, state, mask=mask, reset=reset)
        gradients = torch.autograd.grad((y * weight).sum(), [z, *layer.parameters()])
        found.append((y * weight, tuple(state), gradients))
    equal(found[0], found[1])


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_any_split_gives_the_whole(graph: bool, masked: bool) -> None:
    layer, x = make(kv_heads=2)
    mask = torch.rand(B, T) > 0.3 if masked else torch.ones(B, T, dtype=torch.bool)
    reset = torch.rand(B, T) < 0.15
    with torch.set_grad_enabled(graph):
        whole, end = layer(x, mask=mask, reset=reset)
        for size in (1, 4, 7):
            state, parts = None, []
            for piece, m, r in zip(x.split(size, 1), mask.split(size, 1), reset.split(size, 1), strict=True):
                y, state = layer(piece, state, mask=m, reset=r)
                parts.append(y)
            equal((torch.cat(parts, 1)[mask], tuple(end)), (whole[mask], tuple(state)))


def test_padding_is_as_if_absent() -> None:
    layer, x = make()
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    dirty = x[:1, :8].masked_fill(~mask.unsqueeze(-1), float("nan"))
    with torch.no_grad():
        padded, state = layer(dirty, mask=mask)
        dense, clean = layer(x[:1, :8][mask].unsqueeze(0))
        assert padded.isfinite().all()
        equal(padded[mask], dense[0])
        assert int(state.position) == int(clean.position) == 4
        equal(layer(x[:1, 8:], state)[0], layer(x[:1, 8:], clean)[0])


def test_reset_is_a_fresh_start_even_at_a_masked_token() -> None:
    layer, x = make()
    mask, reset = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    mask[:, 6], reset[:, 6] = False, True
    with torch.no_grad():
        packed, state = layer(x, mask=mask, reset=reset)
        alone, fresh = layer(x[:, 7:])
        equal(packed[:, 7:], alone)
        equal(layer(x[:, :3], state)[0], layer(x[:, :3], fresh)[0])


def test_older_handles_stay_what_they_were() -> None:
    layer, x = make()
    with torch.no_grad():
        _, old = layer(x[:, :5])
        expected = layer(x[:, :7])[0][:, 5:]
        _, taken = layer(x[:, 5:6], old)  # writes in place behind `old`
        assert taken.keys.data_ptr() == old.keys.data_ptr()
        _, other = layer(x[:, 9:10], old)  # must not write over `taken`
        assert other.keys.data_ptr() != old.keys.data_ptr()
        for _ in range(3):
            equal(layer(x[:, 5:7], old)[0], expected)
            equal(layer(x[:, 6:7], taken)[0], expected[:, 1:])
    y, _ = layer(x[:, 5:7], old)  # and where a graph is recorded
    equal(y, expected)


def test_row_views_share_the_buffer_safely() -> None:
    layer, x = make()
    with torch.no_grad():
        _, state = layer(x[:, :5])
        row = states.tree_map(lambda leaf: leaf[1:2], state)
        expected = layer(x[:, :7])[0][:, 5:]
        layer(x[1:2, 9:12], row)
        equal(layer(x[:, 5:7], state)[0], expected)


def save_and_load(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(tuple(state), file)
    file.seek(0)
    return type(state)(*torch.load(file))


@pytest.mark.parametrize("copied", [copy.deepcopy, states.clone, states.detach, save_and_load])
def test_copies_of_a_state_continue_alike(copied: Any) -> None:
    layer, x = make()
    with torch.no_grad():
        expected = layer(x[:, :7])[0][:, 5:]
        _, state = layer(x[:, :5])
        layer(x[:, 9:10], state)
        equal(layer(x[:, 5:7], copied(state))[0], expected)
        equal(layer(x[:, 5:7], state)[0], expected)


def test_rows_can_be_chosen_for_beams() -> None:
    layer, x = make()
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        _, state = layer(x[:, :5])
        beams = states.index_select(state, rows)
        equal(layer(x[rows, 5:7], beams)[0], layer(x[:, :7])[0][rows, 5:])


def test_a_state_made_in_inference_mode_can_be_continued_outside() -> None:
    layer, x = make()
    with torch.inference_mode():
        expected = layer(x[:, :7])[0][:, 5:].clone()
        _, state = layer(x[:, :5])
    with torch.no_grad():
        equal(layer(x[:, 5:7], state)[0], expected)


def test_a_frozen_key_projection_does_not_let_the_cache_change_under_the_graph() -> None:
    layer, x = make()
    layer.k_proj.requires_grad_(False)
    layer.v_proj.requires_grad_(False)
    with torch.no_grad():
        _, state = layer(x[:, :5])
    loss = torch.zeros((), dtype=torch.float64)
    for t in range(5, 9):
        y, state = layer(x[:, t : t + 1], state)
        loss = loss + y.square().sum()
    loss.backward()
    whole = layer(x[:, :9])[0][:, 5:].square().sum()
    (expected,) = torch.autograd.grad(whole, [layer.q_proj.weight])
    equal(layer.q_proj.weight.grad, expected)


def test_rotation_depends_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64).unbind()
    products = []
    for shift in (0, 1000):
        a, b = rotate((q, k), torch.arange(6).unsqueeze(0) + shift, 10000.0)
        products.append(torch.einsum("bhtk,bhsk->bhts", a, b))
    torch.testing.assert_close(products[0], products[1], rtol=0, atol=1e-9)
    assert not torch.allclose(products[0], torch.einsum("bhtk,bhsk->bhts", q, k))


@pytest.mark.parametrize("length", [0, 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_state_bytes_follow_the_card(length: int, kv_heads: int) -> None:
    assert CARD.cost is not None
    layer = Softmax(D, kv_heads=kv_heads)
    with torch.no_grad():
        _, state = layer(torch.randn(1, length, D))
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, {"T": length, "D": D, "H": 4, "kv_heads": kv_heads})


@pytest.mark.parametrize("kv_heads", [0, 2])
def test_flops_follow_the_card(kv_heads: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        Softmax(D, kv_heads=kv_heads).reference(torch.randn(1, 40, D))  # the counter sees nothing of SDPA on a CPU
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, {"T": 40, "D": D, "H": 4, "kv_heads": kv_heads})


def test_compiles_in_one_graph_with_the_same_result() -> None:
    layer, x = make()
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.15
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        _, state = layer(x)
        equal(compiled(x)[0], layer(x)[0])
        y, after = compiled(x, state, mask=mask, reset=reset)  # the buffer's free columns are invalid, not read
        expected, _ = layer(x, state, mask=mask, reset=reset)
        equal(y[mask], expected[mask])
        equal(layer(x, after)[0], layer(x, layer(x, state, mask=mask, reset=reset)[1])[0])


def test_bfloat16_autocast_keeps_the_cache_in_its_type() -> None:
    layer = Softmax(D)
    x = torch.randn(B, T, D)
    with torch.no_grad():
        expected, _ = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            _, state = layer(x[:, :9])
            y, state = layer(x[:, 9:], state)
    assert state.keys.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected[:, 9:], rtol=0, atol=3e-2)


@pytest.mark.parametrize(
    "wrong", [{"heads": 5}, {"heads": 0}, {"kv_heads": 3}, {"kv_heads": -1}, {"heads": 32}, {"rope_base": 0.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Softmax(D, **wrong)
