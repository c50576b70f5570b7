"""Gated linear attention: every form against the recurrence, closed forms, splits, restarts, padding, and extremes."""

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
from instar.kernels import chunks
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.gated_linear_pairs import pairs

CHUNKED = ["two_level", "factorised"]
FORMS = ["recurrent", *CHUNKED]
GATES = ["vector", "scalar", "none"]
B, H, K, V = 2, 3, 5, 4
Inputs = dict[str, Tensor | None]


def draw(T: int, gate: str = "vector", temperature: float = 1.0, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    wide, kind = {"vector": K, "scalar": 1, "none": 1}[gate], torch.float64
    g = F.logsigmoid(torch.randn(B, T, H, wide, dtype=kind)) / temperature
    return {
        "q": torch.randn(B, T, H, K, dtype=kind),
        "k": torch.randn(B, T, H, K, dtype=kind),
        "v": torch.randn(B, T, H, V, dtype=kind),
        "log_gate": None if gate == "none" else g,
        "state": torch.randn(B, H, K, V, dtype=kind),
    }


def observe(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a loss that uses both."""
    taken = {name: x.clone().requires_grad_() for name, x in inputs.items() if x is not None}
    o, state = gated_linear_attention(**{**inputs, **taken}, **options)  # type: ignore[arg-type]
    loss = o.sin().sum() + (state * torch.linspace(-1, 1, V, dtype=state.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(taken.values()), materialize_grads=True)
    return {"o": o.detach(), "S": state.detach(), **{f"d{name}": d for name, d in zip(taken, gradients, strict=True)}}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def part(inputs: Inputs, begin: int, end: int) -> Inputs:
    return {n: x if x is None or n == "state" else x[:, begin:end] for n, x in inputs.items()}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("temperature", [1.0, 16.0])
@pytest.mark.parametrize("form", CHUNKED)
@pytest.mark.parametrize(("T", "chunk"), [(1, 64), (2, 1), (17, 8), (64, 64), (150, 32), (150, 64)])
def test_chunks_equal_the_recurrence(gate: str, temperature: float, form: Any, T: int, chunk: int) -> None:
    inputs = draw(T, gate, temperature)
    close(observe(inputs, form=form, chunk=chunk), observe(inputs, form="recurrent"))


@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(1, 70),
    chunk=st.sampled_from([1, 2, 8, 32]),
    form=st.sampled_from(["auto", *CHUNKED]),
    gate=st.sampled_from(GATES),
    masked=st.booleans(),
    resets=st.booleans(),
    temperature=st.sampled_from([0.02, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_chunks_equal_the_recurrence_with_padding_and_resets(
    T: int, chunk: int, form: Any, gate: str, masked: bool, resets: bool, temperature: float, seed: int
) -> None:
    inputs = draw(T, gate, temperature, seed)
    flags = {
        "mask": torch.rand(B, T) > 0.3 if masked else None,
        "reset": torch.rand(B, T) < 0.15 if resets else None,
    }
    close(observe(inputs, form=form, chunk=chunk, **flags), observe(inputs, form="recurrent", **flags))


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 69), max_size=5), form=st.sampled_from(["auto", *FORMS]), seed=st.integers(0, 99))
def test_any_split_gives_the_whole(cuts: set[int], form: Any, seed: int) -> None:
    inputs = draw(70, seed=seed)
    state, outputs = inputs["state"], []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 70], strict=True):
        o, state = gated_linear_attention(**{**part(inputs, begin, end), "state": state}, form=form, chunk=16)  # type: ignore[arg-type]
        outputs.append(o)
    whole = gated_linear_attention(**inputs, form="recurrent")  # type: ignore[arg-type]
    torch.testing.assert_close((torch.cat(outputs, 1), state), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form: Any) -> None:
    inputs = {name: x.requires_grad_() for name, x in draw(6).items() if x is not None}

    def function(*values: Tensor) -> Any:
        return gated_linear_attention(**dict(zip(inputs, values, strict=True)), form=form, chunk=4)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_without_a_gate_it_is_the_lower_triangle_of_attention(form: Any) -> None:
    inputs = draw(37, "none")
    inputs["state"] = None
    q, k, v = (inputs[n].transpose(1, 2) for n in "qkv")  # type: ignore[union-attr]
    expected = ((q @ k.mT) * 0.3).tril() @ v
    o, state = gated_linear_attention(**inputs, scale=0.3, form=form, chunk=16)  # type: ignore[arg-type]
    torch.testing.assert_close(o, expected.transpose(1, 2))
    torch.testing.assert_close(state, k.mT @ v)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_fixed_decay_is_retention(form: Any) -> None:
    inputs = draw(37)
    decay = torch.tensor([0.5, 0.97, 1.0], dtype=torch.float64)
    inputs["log_gate"], inputs["state"] = decay.log().unsqueeze(-1), None
    q, k, v = (inputs[n].transpose(1, 2) for n in "qkv")  # type: ignore[union-attr]
    t = torch.arange(37, dtype=torch.float64)
    D = (decay[:, None, None] ** (t[:, None] - t).clamp(min=0)).tril()
    expected = (((q @ k.mT) * K**-0.5) * D @ v).transpose(1, 2)
    torch.testing.assert_close(gated_linear_attention(**inputs, form=form, chunk=16)[0], expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["auto", *FORMS])
@pytest.mark.parametrize("gone", [-math.inf, -1e4])
@pytest.mark.parametrize("t", [0, 5, 16])
def test_a_gate_of_zero_restarts_the_sequence(form: Any, gone: float, t: int) -> None:
    inputs = draw(40, temperature=16.0)
    log_gate = inputs["log_gate"]
    assert log_gate is not None
    log_gate[:, t] = gone
    reset = torch.zeros(B, 40, dtype=torch.bool)
    reset[:, t] = True
    found, expected = (observe(inputs, form=form, chunk=16, reset=r) for r in (None, reset))
    close(found, expected)
    assert not found["dlog_gate"][:, t].any()
    close({"o": found["o"][:, t:]}, {"o": gated_linear_attention(**{**part(inputs, t, 40), "state": None}, form=form)[0]})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_leave_earlier_outputs_to_the_bit(form: Any) -> None:
    inputs = draw(50)
    changed = {n: x if x is None or n == "state" else torch.cat([x[:, :23], 2 * x[:, 23:]], 1) for n, x in inputs.items()}
    a, b = (gated_linear_attention(**x, form=form, chunk=16)[0] for x in (inputs, changed))  # type: ignore[arg-type]
    assert torch.equal(a[:, :23], b[:, :23])
    assert not torch.equal(a[:, 23:], b[:, 23:])


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_heads_are_independent(form: Any) -> None:
    inputs = draw(20)
    rows, heads = torch.tensor([1, 0]), torch.tensor([2, 0, 1])
    moved = {n: x[rows][:, heads] if n == "state" else x[rows][:, :, heads] for n, x in inputs.items() if x is not None}
    o, state = gated_linear_attention(**inputs, form=form, chunk=8)  # type: ignore[arg-type]
    o_moved, state_moved = gated_linear_attention(**moved, form=form, chunk=8)  # type: ignore[arg-type]
    torch.testing.assert_close(o_moved, o[rows][:, :, heads])
    torch.testing.assert_close(state_moved, state[rows][:, heads])


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_as_if_it_were_not_there(form: Any) -> None:
    inputs = draw(30)
    mask = torch.zeros(B, 30, dtype=torch.bool)
    mask[0, 7:] = mask[1, 3:20] = True
    for name in ("q", "k", "v"):
        inputs[name][~mask] = math.nan  # type: ignore[index]
    o, state = gated_linear_attention(**inputs, mask=mask, form=form, chunk=8)  # type: ignore[arg-type]
    assert o.isfinite().all()
    for b in range(B):
        row = {n: x[b : b + 1] if n == "state" else x[b : b + 1, mask[b]] for n, x in inputs.items() if x is not None}
        alone = gated_linear_attention(**row, form="recurrent")  # type: ignore[arg-type]
        torch.testing.assert_close((o[b : b + 1, mask[b]], state[b : b + 1]), alone)


@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences_are_separate_ones(form: Any) -> None:
    inputs = draw(60)
    reset = torch.zeros(B, 60, dtype=torch.bool)
    reset[:, [9, 10, 41]] = True
    o, state = gated_linear_attention(**inputs, reset=reset, form=form, chunk=16)  # type: ignore[arg-type]
    for begin, end in ((0, 9), (9, 10), (10, 41), (41, 60)):
        piece = part(inputs, begin, end)
        piece["state"] = inputs["state"] if begin == 0 else None
        alone = gated_linear_attention(**piece, form="recurrent")  # type: ignore[arg-type]
        torch.testing.assert_close(o[:, begin:end], alone[0])
    torch.testing.assert_close(state, alone[1])


@pytest.mark.parametrize("form", ["auto", "two_level", "factorised"])
def test_strong_gates_stay_finite_and_exact_in_float32(form: Any) -> None:
    torch.manual_seed(0)
    T = 4096
    q, k, v = (torch.randn(1, T, 2, n) for n in (8, 8, 8))
    g = F.logsigmoid(torch.randn(1, T, 2, 8)) * 20
    taken = [x.requires_grad_() for x in (q, k, v, g)]
    o, state = gated_linear_attention(q, k, v, g, form=form)
    gradients = torch.autograd.grad(o.square().sum(), taken)
    assert all(x.isfinite().all() for x in (o, state, *gradients))
    with torch.no_grad():
        exact, _ = gated_linear_attention(*(x.double() for x in taken), form="recurrent")
    torch.testing.assert_close(o.double(), exact, rtol=1e-3, atol=1e-3)


def test_weak_gates_stay_exact_in_float32() -> None:
    inputs = {n: x.float() for n, x in draw(500, temperature=16.0).items() if x is not None}
    exact = observe({n: x.double() for n, x in inputs.items()}, form="recurrent")
    for form in CHUNKED:
        found = {n: x.double() for n, x in observe(inputs, form=form).items()}
        close(found, exact, 2e-4)


def test_pairs_need_no_exponent() -> None:
    """P by its definition, one product of gates after another, for gates of which some are zero."""
    torch.manual_seed(0)
    q, k, alpha = torch.randn(3, 2, 16, 5, dtype=torch.float64).unbind()
    alpha = alpha.sigmoid() * (torch.rand_like(alpha) > 0.2)
    P, A, Z = pairs(q, k, alpha)
    expected = torch.zeros_like(P)
    for i in range(16):
        for j in range(i + 1):
            expected[:, i, j] = (q[:, i] * k[:, j] * alpha[:, j + 1 : i + 1].prod(1)).sum(-1)
    torch.testing.assert_close(P, expected)
    torch.testing.assert_close(A, alpha.cumprod(1))
    torch.testing.assert_close(Z, torch.stack([alpha[:, j + 1 :].prod(1) for j in range(16)], 1))


def test_the_factorised_form_gives_way_where_it_would_overflow() -> None:
    inputs = draw(128, temperature=0.2)
    assert inputs["log_gate"].unflatten(1, (2, 64)).sum(2).min() < -100  # type: ignore[union-attr]
    close(observe(inputs, form="factorised"), observe(inputs, form="two_level"), 0.0)


def test_half_precision_is_float32_inside() -> None:
    inputs = {n: x.bfloat16() for n, x in draw(200, temperature=16.0).items() if x is not None}
    o, state = gated_linear_attention(**inputs)  # type: ignore[arg-type]
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    exact, _ = gated_linear_attention(**{n: x.double() for n, x in inputs.items()}, form="recurrent")  # type: ignore[arg-type]
    torch.testing.assert_close(o.double(), exact, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        again = gated_linear_attention(**inputs)  # type: ignore[arg-type]
    assert torch.equal(again[1], state)


def test_no_tokens_leave_the_state() -> None:
    inputs = draw(0)
    o, state = gated_linear_attention(**inputs)  # type: ignore[arg-type]
    assert o.shape == (B, 0, H, V)
    assert torch.equal(state, inputs["state"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": torch.zeros(B, H, 9, K)}, "Time comes before heads"),
        ({"log_gate": torch.zeros(B, 9, H, 2)}, "broadcast"),
        ({"log_gate": torch.full((H, 1), 0.1)}, "must not be positive"),
        ({"state": torch.zeros(B, H, V, K)}, "state"),
        ({"chunk": 48}, "power of two"),
        ({"form": "parallel"}, "form must be"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        gated_linear_attention(**{**draw(9), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", CHUNKED)
def test_parts_of_a_long_sequence_are_one_sequence(gate: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, T = draw(100, gate), 100
    flags: dict[str, Any] = {"mask": torch.rand(B, T) < 0.9, "reset": torch.rand(B, T) < 0.05, "form": form, "chunk": 8}
    whole = observe(inputs, **flags)
    for together in (1, 300):  # tokens × heads × rows: parts of 8 and of 48 tokens
        monkeypatch.setattr(chunks, "TOGETHER", together)
        close(observe(inputs, **flags), whole)
