"""The state-space dual: blocks against the recurrence, its semiseparable matrix, `transformers`' own, restarts, and extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.state_space_dual import state_space_dual

FORMS = ["recurrent", "chunked"]
B, H, K, V = 2, 6, 5, 4
Inputs = dict[str, Any]


def draw(T: int, groups: int = 2, temperature: float = 1.0, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    kind = torch.float64
    return {
        "x": torch.randn(B, T, H, V, dtype=kind),
        "keys": torch.randn(B, T, groups, K, dtype=kind),
        "queries": torch.randn(B, T, groups, K, dtype=kind),
        "log_gate": F.logsigmoid(torch.randn(B, T, H, dtype=kind)) / temperature,
        "state": torch.randn(B, H, K, V, dtype=kind),
    }


def observe(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a loss that uses both."""
    taken = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = state_space_dual(**taken, **options)
    loss = y.sin().sum() + (state * torch.linspace(-1, 1, V, dtype=state.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(taken.values()))
    return {"y": y.detach(), "S": state.detach(), **{f"d{name}": d for name, d in zip(taken, gradients, strict=True)}}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def part(inputs: Inputs, begin: int, end: int) -> Inputs:
    return {n: x if n == "state" else x[:, begin:end] for n, x in inputs.items()}


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("temperature", [0.02, 1.0, 30.0])
@pytest.mark.parametrize(("T", "chunk"), [(1, 64), (2, 1), (17, 8), (64, 64), (150, 64)])
def test_blocks_equal_the_recurrence(groups: int, temperature: float, T: int, chunk: int) -> None:
    inputs = draw(T, groups, temperature)
    close(observe(inputs, form="chunked", chunk=chunk), observe(inputs, form="recurrent"))


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 70),
    chunk=st.sampled_from([1, 2, 8, 32]),
    groups=st.sampled_from([1, 3]),
    masked=st.booleans(),
    resets=st.booleans(),
    temperature=st.sampled_from([0.02, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_blocks_equal_the_recurrence_with_padding_and_resets(
    T: int, chunk: int, groups: int, masked: bool, resets: bool, temperature: float, seed: int
) -> None:
    inputs = draw(T, groups, temperature, seed)
    flags = {
        "mask": torch.rand(B, T) > 0.3 if masked else None,
        "reset": torch.rand(B, T) < 0.15 if resets else None,
    }
    close(observe(inputs, form="chunked", chunk=chunk, **flags), observe(inputs, form="recurrent", **flags))


def test_long_sequences_are_cut_into_parts_that_give_the_whole() -> None:
    inputs = draw(1000)
    close(observe(inputs), observe(inputs, form="recurrent"), 1e-9)  # 12,000 tokens of heads are three parts


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 69), max_size=5), form=st.sampled_from(["auto", *FORMS]), seed=st.integers(0, 99))
def test_any_split_gives_the_whole(cuts: set[int], form: Any, seed: int) -> None:
    inputs = draw(70, seed=seed)
    state, outputs = inputs["state"], []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 70], strict=True):
        y, state = state_space_dual(**{**part(inputs, begin, end), "state": state}, form=form, chunk=16)
        outputs.append(y)
    whole = state_space_dual(**inputs, form="recurrent")
    torch.testing.assert_close((torch.cat(outputs, 1), state), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form: Any) -> None:
    inputs = {name: x[:1].requires_grad_() for name, x in draw(6).items()}

    def function(*values: Tensor) -> Any:
        return state_space_dual(**dict(zip(inputs, values, strict=True)), form=form, chunk=4)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_is_a_product_with_a_semiseparable_matrix(form: Any) -> None:
    """Y = M X with M_ij = C_iᵀ B_j Π_{j<l≤i} α_l, for each head."""
    inputs = draw(37, groups=3)
    inputs["state"] = None
    b = inputs["log_gate"].cumsum(1).transpose(1, 2)
    C, Bs = (inputs[n].repeat_interleave(H // 3, dim=2).transpose(1, 2) for n in ("queries", "keys"))
    M = (C @ Bs.mT) * (b.unsqueeze(-1) - b.unsqueeze(-2)).tril().exp().tril()
    y, _ = state_space_dual(**inputs, form=form, chunk=16)
    torch.testing.assert_close(y, (M @ inputs["x"].transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("temperature", [0.05, 8.0])
def test_is_gated_linear_attention_with_one_gate_a_head(temperature: float) -> None:
    inputs = draw(100, groups=1, temperature=temperature)
    q, k = (inputs[n].expand(-1, -1, H, -1) for n in ("queries", "keys"))
    g = inputs["log_gate"].unsqueeze(-1)
    found = state_space_dual(**inputs, chunk=32)
    torch.testing.assert_close(found, gated_linear_attention(q, k, inputs["x"], g, scale=1.0, state=inputs["state"]))


def test_is_the_scan_of_transformers() -> None:
    """Values, final state and gradients, from an initial state, in float32; theirs has Δ inside and the state transposed."""
    theirs = pytest.importorskip("transformers.models.mamba2.modeling_mamba2").mamba2_chunk_scan
    torch.manual_seed(0)
    T, groups = 150, 2
    drawn = [torch.randn(B, T, H, V), torch.rand(B, T, H), -4 * torch.rand(H), torch.randn(B, T, groups, K)]
    drawn += [torch.randn(B, T, groups, K), torch.randn(B, H, K, V)]
    found = []
    for ours in (True, False):
        x, dt, A, keys, queries, S = leaves = [t.clone().requires_grad_() for t in drawn]
        if ours:
            y, last = state_space_dual(x * dt.unsqueeze(-1), keys, queries, A * dt, state=S)
        else:
            y, last = theirs(x, dt, A, keys, queries, chunk_size=32, initial_states=S.mT, return_final_states=True)
            last = last.mT
        gradients = torch.autograd.grad(y.sin().sum() + last.sin().sum(), leaves)
        found.append({str(i): t.detach() for i, t in enumerate([y, last, *gradients])})
    close(found[0], found[1], 2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gone", [-math.inf, -1e4])
@pytest.mark.parametrize("t", [0, 5, 16])
def test_a_gate_of_zero_restarts_the_sequence(form: Any, gone: float, t: int) -> None:
    inputs = draw(40, temperature=16.0)
    inputs["log_gate"][:, t] = gone
    reset = torch.zeros(B, 40, dtype=torch.bool)
    reset[:, t] = True
    found, expected = (observe(inputs, form=form, chunk=16, reset=r) for r in (None, reset))
    close(found, expected)
    assert not found["dlog_gate"][:, t].any()
    close({"y": found["y"][:, t:]}, {"y": state_space_dual(**{**part(inputs, t, 40), "state": None}, form=form)[0]})


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_as_if_it_were_not_there(form: Any) -> None:
    inputs = draw(30)
    mask = torch.zeros(B, 30, dtype=torch.bool)
    mask[0, 7:] = mask[1, 3:20] = True
    for name in ("x", "keys", "queries"):
        inputs[name][~mask] = math.nan
    y, state = state_space_dual(**inputs, mask=mask, form=form, chunk=8)
    assert y.isfinite().all()
    for b in range(B):
        row = {n: x[b : b + 1] if n == "state" else x[b : b + 1, mask[b]] for n, x in inputs.items()}
        torch.testing.assert_close((y[b : b + 1, mask[b]], state[b : b + 1]), state_space_dual(**row, form="recurrent"))


@pytest.mark.parametrize("strength", [1.0, 20.0])
def test_float32_stays_finite_and_exact_in_long_sequences(strength: float) -> None:
    inputs = {n: x.float() for n, x in draw(2048).items()}
    inputs["log_gate"] = inputs["log_gate"] * strength
    exact = observe({n: x.double() for n, x in inputs.items()}, form="chunked")
    close({n: x.double() for n, x in observe(inputs).items()}, exact, 2e-3)


def test_half_precision_is_float32_inside() -> None:
    inputs = {n: x.bfloat16() for n, x in draw(200).items()}
    y, state = state_space_dual(**inputs)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    exact, _ = state_space_dual(**{n: x.double() for n, x in inputs.items()}, form="recurrent")
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        again = state_space_dual(**inputs)
    assert torch.equal(again[1], state)


def test_no_tokens_leave_the_state() -> None:
    inputs = draw(0)
    y, state = state_space_dual(**inputs)
    assert y.shape == (B, 0, H, V)
    assert torch.equal(state, inputs["state"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keys": torch.zeros(B, 2, 9, K)}, "Time comes before heads"),
        ({"keys": torch.zeros(B, 9, 4, K), "queries": torch.zeros(B, 9, 4, K)}, "groups"),
        ({"log_gate": torch.zeros(B, 9, 1)}, r"log_gate \[B, T, H\]"),
        ({"log_gate": torch.full((B, 9, H), 0.1)}, "must not be positive"),
        ({"state": torch.zeros(B, H, V, K)}, "state"),
        ({"chunk": 48}, "power of two"),
        ({"form": "parallel"}, "form must be"),
    ],
)
def test_wrong_arguments_are_refused(change: Inputs, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        state_space_dual(**{**draw(9), **change})
