"""The delta rule: chunks against the recurrence, what it stores and replaces, parity with `transformers`, restarts, extremes."""

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
from instar.kernels.delta_rule import gated_delta_rule
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.gated_linear_pairs import decays

FORMS = ["recurrent", "chunked"]
B, H, K, V = 2, 3, 5, 4
Inputs = dict[str, Tensor | None]


def draw(T: int, gate: bool = True, temperature: float = 1.0, strongest: float = 2.0, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    kind = torch.float64
    g = F.logsigmoid(torch.randn(B, T, H, dtype=kind)) / temperature
    return {
        "q": torch.randn(B, T, H, K, dtype=kind),
        "k": F.normalize(torch.randn(B, T, H, K, dtype=kind), dim=-1),
        "v": torch.randn(B, T, H, V, dtype=kind),
        "beta": strongest * torch.rand(B, T, H, dtype=kind),
        "log_gate": g if gate else None,
        "state": torch.randn(B, H, K, V, dtype=kind),
    }


def observe(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a loss that uses both."""
    taken = {name: x.clone().requires_grad_() for name, x in inputs.items() if x is not None}
    o, state = gated_delta_rule(**{**inputs, **taken}, **options)  # type: ignore[arg-type]
    loss = o.sin().sum() + (state * torch.linspace(-1, 1, state.shape[-1], dtype=state.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(taken.values()), materialize_grads=True)
    return {"o": o.detach(), "S": state.detach(), **{f"d{name}": d for name, d in zip(taken, gradients, strict=True)}}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def part(inputs: Inputs, begin: int, end: int) -> Inputs:
    return {n: x if x is None or n == "state" else x[:, begin:end] for n, x in inputs.items()}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 1.0, 30.0])
@pytest.mark.parametrize(("T", "chunk"), [(1, 64), (2, 1), (17, 8), (64, 64), (150, 64)])
def test_chunks_equal_the_recurrence(gate: bool, temperature: float, T: int, chunk: int) -> None:
    inputs = draw(T, gate, temperature)
    close(observe(inputs, form="chunked", chunk=chunk), observe(inputs, form="recurrent"))


@settings(max_examples=30, deadline=None)
@given(
    T=st.integers(1, 70),
    chunk=st.sampled_from([1, 2, 8, 32]),
    gate=st.booleans(),
    masked=st.booleans(),
    resets=st.booleans(),
    temperature=st.sampled_from([0.02, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_chunks_equal_the_recurrence_with_padding_and_resets(
    T: int, chunk: int, gate: bool, masked: bool, resets: bool, temperature: float, seed: int
) -> None:
    inputs = draw(T, gate, temperature, seed=seed)
    flags = {
        "mask": torch.rand(B, T) > 0.3 if masked else None,
        "reset": torch.rand(B, T) < 0.15 if resets else None,
    }
    close(observe(inputs, form="chunked", chunk=chunk, **flags), observe(inputs, form="recurrent", **flags))


def test_long_sequences_are_cut_into_parts_that_give_the_whole() -> None:
    inputs = draw(1600, temperature=16.0, strongest=1.0)
    close(observe(inputs), observe(inputs, form="recurrent"), 1e-9)  # 9,600 tokens of heads are three parts


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 69), max_size=5), form=st.sampled_from(["auto", *FORMS]), seed=st.integers(0, 99))
def test_any_split_gives_the_whole(cuts: set[int], form: Any, seed: int) -> None:
    inputs = draw(70, seed=seed)
    state, outputs = inputs["state"], []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 70], strict=True):
        o, state = gated_delta_rule(**{**part(inputs, begin, end), "state": state}, form=form, chunk=16)  # type: ignore[arg-type]
        outputs.append(o)
    whole = gated_delta_rule(**inputs, form="recurrent")  # type: ignore[arg-type]
    torch.testing.assert_close((torch.cat(outputs, 1), state), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form: Any, gate: bool) -> None:
    inputs = {name: x[:1].requires_grad_() for name, x in draw(6, gate).items() if x is not None}

    def function(*values: Tensor) -> Any:
        return gated_delta_rule(**dict(zip(inputs, values, strict=True)), form=form, chunk=4)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_is_the_function_of_transformers(name: str) -> None:
    """Values, final state and gradients, from an initial state, in float32."""
    theirs = getattr(pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next"), name)
    inputs = {n: x.float() for n, x in draw(150, temperature=4.0, strongest=1.0).items() if x is not None}
    found = []
    for function in (gated_delta_rule, theirs):
        q, k, v, beta, g, state = (inputs[n].clone().requires_grad_() for n in ("q", "k", "v", "beta", "log_gate", "state"))
        if function is theirs:
            o, last = theirs(q, k, v, g, beta, initial_state=state, output_final_state=True)
        else:
            o, last = gated_delta_rule(q, k, v, beta, g, state=state)
        gradients = torch.autograd.grad(o.sin().sum() + last.sin().sum(), [q, k, v, beta, g, state])
        found.append({str(i): x.detach() for i, x in enumerate([o, last, *gradients])})
    close(found[0], found[1], 2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_key_answers_with_what_was_written_last(form: Any) -> None:
    """At β = 1, whatever stood under a key of length 1 is replaced; nothing else under orthogonal keys is touched."""
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(K, K, dtype=torch.float64))[0]
    order = torch.tensor([0, 1, 2, 1, 3, 0, 1, 4])
    k = keys[order].view(1, -1, 1, K)
    v = torch.randn(1, len(order), 1, V, dtype=torch.float64)
    beta = torch.ones(1, len(order), 1, dtype=torch.float64)
    _, S = gated_delta_rule(k, k, v, beta, form=form, chunk=4)
    for i, last in ((0, 5), (1, 6), (2, 2), (3, 4), (4, 7)):
        torch.testing.assert_close(keys[i] @ S[0, 0], v[0, last, 0])


@pytest.mark.parametrize("form", FORMS)
def test_with_orthogonal_keys_it_is_linear_attention(form: Any) -> None:
    torch.manual_seed(0)
    k = torch.linalg.qr(torch.randn(B, H, K, K, dtype=torch.float64))[0].transpose(1, 2)
    q, v = torch.randn(B, K, H, K, dtype=torch.float64), torch.randn(B, K, H, V, dtype=torch.float64)
    beta = torch.rand(B, K, H, dtype=torch.float64)
    g = F.logsigmoid(torch.randn(B, K, H, dtype=torch.float64))
    found = gated_delta_rule(q, k, v, beta, g, form=form)
    torch.testing.assert_close(found, gated_linear_attention(q, k, beta.unsqueeze(-1) * v, g.unsqueeze(-1)))


@pytest.mark.parametrize("form", FORMS)
def test_at_twice_the_strength_it_counts_modulo_two(form: Any) -> None:
    """I - 2 k kᵀ reflects: along k, the state changes its sign with every token that shows k."""
    torch.manual_seed(0)
    seen = torch.rand(1, 100, 1, dtype=torch.float64) < 0.4
    k = torch.zeros(1, 100, 1, K, dtype=torch.float64)
    k[..., 0] = 1.0
    state = torch.ones(1, 1, K, V, dtype=torch.float64)
    v = torch.zeros(1, 100, 1, V, dtype=torch.float64)
    o, _ = gated_delta_rule(k, k, v, 2.0 * seen, scale=1.0, state=state, form=form)
    torch.testing.assert_close(o[..., 0], 1.0 - 2.0 * (seen.cumsum(1) % 2).double())


@pytest.mark.parametrize("form", FORMS)
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
    close({"o": found["o"][:, t:]}, {"o": gated_delta_rule(**{**part(inputs, t, 40), "state": None}, form=form)[0]})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_as_if_it_were_not_there(form: Any) -> None:
    inputs = draw(30)
    mask = torch.zeros(B, 30, dtype=torch.bool)
    mask[0, 7:] = mask[1, 3:20] = True
    for name in ("q", "k", "v", "beta"):
        inputs[name][~mask] = math.nan  # type: ignore[index]
    o, state = gated_delta_rule(**inputs, mask=mask, form=form, chunk=8)  # type: ignore[arg-type]
    assert o.isfinite().all()
    for b in range(B):
        row = {n: x[b : b + 1] if n == "state" else x[b : b + 1, mask[b]] for n, x in inputs.items() if x is not None}
        alone = gated_delta_rule(**row, form="recurrent")  # type: ignore[arg-type]
        torch.testing.assert_close((o[b : b + 1, mask[b]], state[b : b + 1]), alone)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences_are_separate_ones(form: Any, gate: bool) -> None:
    inputs = draw(60, gate)
    reset = torch.zeros(B, 60, dtype=torch.bool)
    reset[:, [9, 10, 41]] = True
    o, state = gated_delta_rule(**inputs, reset=reset, form=form, chunk=16)  # type: ignore[arg-type]
    for begin, end in ((0, 9), (9, 10), (10, 41), (41, 60)):
        piece = part(inputs, begin, end)
        piece["state"] = inputs["state"] if begin == 0 else None
        alone = gated_delta_rule(**piece, form="recurrent")  # type: ignore[arg-type]
        torch.testing.assert_close(o[:, begin:end], alone[0])
    torch.testing.assert_close(state, alone[1])


@pytest.mark.parametrize("strength", [1.0, 20.0])
def test_float32_stays_finite_and_exact_in_long_sequences(strength: float) -> None:
    inputs = {n: x.float() for n, x in draw(2048, strongest=1.0).items() if x is not None}
    inputs["log_gate"] = inputs["log_gate"] * strength
    exact = observe({n: x.double() for n, x in inputs.items()}, form="chunked")
    close({n: x.double() for n, x in observe(inputs).items()}, exact, 2e-3)


@pytest.mark.parametrize(("beta", "tolerance"), [(1.0, 1e-5), (1.9, 1e-4)])
def test_equal_keys_are_no_difficulty(beta: float, tolerance: float) -> None:
    """All of L is then β: powers of it, which a Neumann series would sum, reach 1e18 in a chunk of 64."""
    inputs = {n: x.float() for n, x in draw(256, gate=False).items() if x is not None}
    inputs["k"] = inputs["k"][:, :1].expand(-1, 256, -1, -1)
    inputs["beta"] = torch.full_like(inputs["beta"], beta)
    exact = observe({n: x.double() for n, x in inputs.items()}, form="recurrent")
    for name, x in observe(inputs).items():
        assert (x.double() - exact[name]).abs().max() < tolerance * exact[name].abs().max(), name


def test_decays_need_no_exponent() -> None:
    torch.manual_seed(0)
    alpha = torch.rand(3, 16, 1, dtype=torch.float64)
    alpha[torch.rand_like(alpha) < 0.2] = 0.0
    decay, A, Z = decays(alpha)
    for i in range(16):
        for j in range(16):
            expected = alpha[:, j + 1 : i + 1, 0].prod(1) if j <= i else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(decay[:, i, j], expected)
    torch.testing.assert_close(A, alpha.cumprod(1))
    torch.testing.assert_close(Z, torch.stack([alpha[:, j + 1 :].prod(1) for j in range(16)], 1))


def test_half_precision_is_float32_inside() -> None:
    inputs = {n: x.bfloat16() for n, x in draw(200, temperature=16.0, strongest=1.0).items() if x is not None}
    o, state = gated_delta_rule(**inputs)  # type: ignore[arg-type]
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    exact, _ = gated_delta_rule(**{n: x.double() for n, x in inputs.items()}, form="recurrent")  # type: ignore[arg-type]
    torch.testing.assert_close(o.double(), exact, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        again = gated_delta_rule(**inputs)  # type: ignore[arg-type]
    assert torch.equal(again[1], state)


def test_no_tokens_leave_the_state() -> None:
    inputs = draw(0)
    o, state = gated_delta_rule(**inputs)  # type: ignore[arg-type]
    assert o.shape == (B, 0, H, V)
    assert torch.equal(state, inputs["state"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": torch.zeros(B, H, 9, K)}, "Time comes before heads"),
        ({"beta": torch.zeros(B, 9, H, 1)}, r"beta \[B, T, H\]"),
        ({"log_gate": torch.zeros(B, 9, 1)}, r"log_gate \[B, T, H\]"),
        ({"log_gate": torch.full((B, 9, H), 0.1)}, "must not be positive"),
        ({"state": torch.zeros(B, H, V, K)}, "state"),
        ({"chunk": 48}, "power of two"),
        ({"form": "parallel"}, "form must be"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        gated_delta_rule(**{**draw(9), **change})  # type: ignore[arg-type]
