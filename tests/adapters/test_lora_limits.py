"""Gradients of attention and of LoRA in it: oracles of the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.adapters import LoRA
from instar.adapters.limits import gradients
from instar.adapters.limits.attention import attention, choose, choose_for
from instar.adapters.limits.diagnosis import diagnose, table
from instar.adapters.limits.polynomial import Features, chebyshev, smallest, taylor
from instar.adapters.lora_limits import phase_transition
from instar.errors import DivergedError, ModelError, ShapeError


def drawn(L: int = 40, d: int = 3, e: int = 4, size: float = 1.0, seed: int = 0, M: int | None = None) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((2, L, d), (2, M or L, d), (2, M or L, e), (2, L, e))
    q, k, v, up = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    q, k = (size * t / t.abs().max() for t in (q, k))
    return [q, k, v, up]


def wanted(q: Tensor, k: Tensor, v: Tensor, up: Tensor, scale: float, causal: bool) -> tuple[Tensor, ...]:
    q, k, v = (t.detach().clone().requires_grad_() for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return (out, *torch.autograd.grad(out, (q, k, v), up))


def apart(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())


@pytest.mark.parametrize("causal", [False, True])
def test_exact_gradients_are_those_of_autograd(causal: bool) -> None:
    q, k, v, up = drawn(L=70)
    out, *want = wanted(q, k, v, up, 0.7, causal)
    kept = gradients.blockwise_forward(q, k, v, 0.7, causal, block=16)
    torch.testing.assert_close(kept.out, out)
    for found in (
        gradients.dense(q, k, v, up, 0.7, causal),
        gradients.blockwise(q, k, v, up, kept, 0.7, causal, block=16),
        gradients.blockwise(q, k, v, up, kept, 0.7, causal, block=1000),
    ):
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_a_high_degree_is_exact(causal: bool) -> None:
    q, k, v, up = drawn(L=33, size=0.7)
    out, *want = wanted(q, k, v, up, 1.0, causal)
    features = Features(taylor(14, 2.0), 3)
    kept = gradients.polynomial_forward(q, k, v, features, causal, block=8)
    torch.testing.assert_close(kept.out, out, rtol=1e-9, atol=1e-9)
    for found, expected in zip(gradients.polynomial(q, k, v, up, kept, features, causal, block=8), want, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_the_chain_of_thin_factors_is_the_formula_on_the_approximate_matrix(causal: bool) -> None:
    """At a low degree, where it is not exact: f = P / row sums, and then p, as they stand."""
    q, k, v, up = drawn(L=30, size=1.2)
    features = Features(taylor(4, 4.0), 3)
    f = features.polynomial(q @ k.mT)
    f = f.tril() if causal else f
    f = f / f.sum(-1, keepdim=True)
    products = f * (up @ v.mT)
    p = products - products.sum(-1, keepdim=True) * f
    kept = gradients.polynomial_forward(q, k, v, features, causal, block=7)
    found = gradients.polynomial(q, k, v, up, kept, features, causal, block=7)
    torch.testing.assert_close(kept.out, f @ v)
    for a, b in zip(found, (p @ k, p.mT @ q, f.mT @ up), strict=True):
        torch.testing.assert_close(a, b)


def test_more_keys_than_queries() -> None:
    q, k, v, up = drawn(L=20, M=55, size=0.5)
    _, *want = wanted(q, k, v, up, 1.0, False)
    for mode, extra in (("exact", {}), ("blockwise", {}), ("poly", {"degree": 12})):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        attention(*leaves, mode, scale=1.0, block=16, **extra).backward(up)
        for leaf, expected in zip(leaves, want, strict=True):
            torch.testing.assert_close(leaf.grad, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("make", [taylor, chebyshev])
@pytest.mark.parametrize("degree", [0, 1, 4, 7])
def test_features_multiply_to_the_polynomial(make: object, degree: int) -> None:
    polynomial = make(degree, 1.5)  # type: ignore[operator]
    features = Features(polynomial, 4)
    assert features.count == math.comb(4 + degree, degree) == polynomial.rank(4)
    q, k = torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(features.queries(q) @ features.keys(k).T, polynomial(q @ k.T), rtol=1e-11, atol=1e-11)


def test_chebyshev_beats_taylor_and_converges() -> None:
    for reach in (0.5, 2.0, 5.0):
        errors = [[make(degree, reach).error for degree in (2, 4, 6, 8)] for make in (taylor, chebyshev)]
        assert all(a < b for a, b in zip(errors[1], errors[0], strict=True))
        assert all(errors[1][i + 1] < errors[1][i] for i in range(3))
    found = smallest(3.0, 1e-3)
    assert found is not None
    assert (found.degree % 2, found.error <= 1e-3) == (0, True)
    assert chebyshev(found.degree - 2, 3.0).error > 1e-3
    assert smallest(60.0, 1e-3) is None


def test_rows_of_p_sum_to_zero() -> None:
    """So a constant vector added to all keys changes no gradient of the queries."""
    q, k, v, up = drawn()
    shifted = gradients.dense(q, k + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), v, up, 1.0, False)
    torch.testing.assert_close(shifted[0], gradients.dense(q, k, v, up, 1.0, False)[0])


def test_lora_gradients_are_the_chain_rule_of_the_paper() -> None:
    """Lemma 3.2 for the paper's loss ½‖f C_3 - Y‖² with α/r in one place, and no gradient for A while B is 0."""
    g = torch.Generator().manual_seed(3)
    L, d, r, alpha = 64, 3, 2, 4.0
    X, Y, Wq, Wk, Wv, A = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((L, d), (L, d), (d, d), (d, d), (d, d), (r, d))
    )
    for B in (torch.randn(d, r, generator=g, dtype=torch.float64), torch.zeros(d, r, dtype=torch.float64)):
        a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
        q = X @ Wq.T + (alpha / r) * X @ a.T @ b.T
        loss = 0.5 * (attention(q[None], (X @ Wk.T)[None], (X @ Wv.T)[None], "blockwise", scale=1.0)[0] - Y).square().sum()
        loss.backward()
        f = torch.softmax((X @ (Wq + (alpha / r) * B @ A).T) @ (X @ Wk.T).T, -1)
        q_ = (f @ X @ Wv.T - Y) @ (X @ Wv.T).T
        p = f * q_ - (f * q_).sum(-1, keepdim=True) * f
        W = (p @ (X @ Wk.T)).T @ X  # of the effective weight
        torch.testing.assert_close(a.grad, (alpha / r) * B.T @ W)
        torch.testing.assert_close(b.grad, (alpha / r) * W @ A.T)
        assert bool(B.any()) or not bool(a.grad.any())


def test_the_error_falls_with_the_degree_and_rises_with_the_norm() -> None:
    """The phase transition: at Γ = 0.5 degree 4 is exact to 1e-6, at Γ = 3 it is not to 30 % (d = 3, L = 512)."""
    found = {}
    for size in (0.5, 1.5, 3.0):
        q, k, v, up = drawn(L=512, size=size, seed=5)
        want = gradients.dense(q, k, v, up, 1.0, False)[0]
        for degree in (2, 4, 8):
            features = Features(taylor(degree, 9.0), 3)
            kept = gradients.polynomial_forward(q, k, v, features, False)
            found[size, degree] = apart(gradients.polynomial(q, k, v, up, kept, features, False)[0], want)
    assert all(found[size, 2] > found[size, 4] > found[size, 8] for size in (0.5, 1.5, 3.0))
    assert all(found[0.5, degree] < found[1.5, degree] < found[3.0, degree] for degree in (2, 4, 8))
    assert found[0.5, 4] < 1e-5
    assert found[3.0, 4] > 0.1


def test_auto_keeps_its_tolerance_and_falls_back() -> None:
    q, k, v, up = drawn(L=3000, d=2, e=2, size=0.8)
    choice = choose(q, k, v, 0.01)
    assert choice.polynomial is not None
    assert choice.cheaper > 1
    _, *want = wanted(q, k, v, up, 2**-0.5, False)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    attention(*leaves, "auto", tolerance=0.01).backward(up)
    assert all(apart(leaf.grad, expected) < 0.01 for leaf, expected in zip(leaves, want, strict=True))
    assert choose_for(1.0, 64, 64, 4096).polynomial is None  # real heads: too many features
    assert choose_for(100.0, 2, 2, 10**9).polynomial is None
    leaves = [(20 * t).requires_grad_() for t in (q, k)] + [v.clone().requires_grad_()]
    out = attention(*leaves, "auto")
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*leaves))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("e", [3, 5])
def test_auto_is_exact_where_no_polynomial_is_good_enough(causal: bool, e: int) -> None:
    """Equal widths go through torch's kernel, others through blocks: numbers and gradients are the same, and no L × L is kept."""
    q, k, v, up = drawn(L=300, d=3, e=e, size=9.0)
    out, *want = wanted(q, k, v, up, 3**-0.5, causal)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = attention(*leaves, "auto", causal=causal)
    torch.testing.assert_close(found, out)
    found.backward(up)
    for leaf, expected in zip(leaves, want, strict=True):
        torch.testing.assert_close(leaf.grad, expected)
    assert max(kept) < 300 * 300


def test_float32_and_permuted_keys() -> None:
    q, k, v, _ = (t.float() for t in drawn(L=50, size=0.6))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    a = attention(q, k, v, "poly", degree=8)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, attention(q, k[:, order], v[:, order], "poly", degree=8))
    torch.testing.assert_close(a, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    q, k, v, _ = drawn()
    with pytest.raises(ShapeError, match="degree"):
        attention(q, k, v, "poly")
    with pytest.raises(ShapeError, match="degree"):
        attention(q, k, v, "blockwise", degree=2)
    with pytest.raises(ShapeError, match="mode"):
        attention(q, k, v, "fast")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="floating type"):
        attention(q, k.float(), v)
    with pytest.raises(ShapeError, match="at least one key"):
        attention(q, k[:, :0], v[:, :0])
    with pytest.raises(ShapeError, match="as many queries"):
        attention(q[:, :5], k, v, causal=True)
    with pytest.raises(ShapeError, match="not finite"):
        attention(q * float("nan"), k, v)
    with pytest.raises(DivergedError, match="degree"):
        attention(-30 * torch.ones_like(q), torch.ones_like(k), v, "poly", degree=1, reach=1.0)
    with pytest.raises(DivergedError, match="No polynomial stands"):
        attention(30 * q, 30 * k, v, "poly", degree=4)


def test_the_transition_is_where_the_spec_measured_it() -> None:
    found = {(p.size, p.degree): p.error for p in phase_transition(sizes=(0.5, 2.0, 4.0), degrees=(2, 6, 12))}
    assert found[0.5, 2] < 1e-2
    assert found[0.5, 6] < 1e-8
    assert found[4.0, 2] > 0.5
    assert found[0.5, 12] < found[2.0, 12] < found[4.0, 12]
    assert min(p.ratio for p in phase_transition(sizes=(3.0,), degrees=(2,))) > 1.0
    with pytest.raises(ShapeError, match="tokens"):
        phase_transition(tokens=1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_is_diagnosed_head_by_head(kind: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: torch.nn.Module
    if kind == "llama":
        sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4))
        first = model.model.layers[0].self_attn
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=8))
        first = model.transformer.h[0].attn
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = diagnose(model, [{"input_ids": ids}, {"input_ids": ids[:, :9]}])
    assert len(found) == 16
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert {head.tokens for head in found} == {40}
    assert all(head.adapter == 0 for head in found)
    # The bound holds, and the largest entry is that of the layer's own output.
    seen = []
    named = first.q_proj if kind == "llama" else first.c_attn
    handle = named.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model.eval()(input_ids=ids)
    handle.remove()
    q = seen[0][..., :32].unflatten(-1, (8, 4))
    for head in range(8):
        assert found[head].query == pytest.approx(float(q[:, :, head].abs().max()) * 4**-0.25, rel=1e-5)
        assert found[head].reach >= found[head].query * found[head].key / 4**0.5
    assert len(table(found).splitlines()) == 17

    LoRA(r=2).attach(model, where=None if kind == "llama" else "c_attn")
    again = diagnose(model, [{"input_ids": ids}])
    assert [head.layer for head in again] == [head.layer for head in found]
    assert all(head.adapter == 0 for head in again)  # B is zero at birth
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    assert all(head.adapter > 0 for head in diagnose(model, [{"input_ids": ids}]))


def test_models_without_known_parts_are_refused() -> None:
    with pytest.raises(ModelError, match="config"):
        diagnose(torch.nn.Linear(2, 2), [])


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}, "q_norm"),
        ("Phi3", {"num_key_value_heads": 2, "pad_token_id": 0}, "fewer keys"),
        ("Granite", {"attention_multiplier": 1.0}, "multiplied by 1"),
    ],
)
def test_scores_that_are_made_otherwise_are_refused(family: str, settings: dict[str, int | float], words: str) -> None:
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(**sizes, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ModelError, match=words):
        diagnose(model, [torch.randint(50, (1, 9))])


def test_a_diagnosis_leaves_every_module_in_its_mode() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=8)).train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    diagnose(model, [torch.randint(50, (1, 9))])
    assert [module.training for module in model.modules()] == before


def test_a_transformers_model_trains_through_it() -> None:
    """Gradients of a whole model, grouped heads and rotary positions included, are those of SDPA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from instar.doors import hf_gradients

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)).double()
    ids = torch.randint(50, (2, 30))
    LoRA(r=2).attach(model)
    grads = {}
    for mode in ("sdpa", "blockwise", "poly"):
        if mode != "sdpa":
            model.config.attention_gradient = {"mode": mode, **({"degree": 8} if mode == "poly" else {})}
        model.set_attn_implementation("sdpa" if mode == "sdpa" else hf_gradients.register())
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads[mode] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert grads["sdpa"].norm() > 0
    torch.testing.assert_close(grads["blockwise"], grads["sdpa"])
    torch.testing.assert_close(grads["poly"], grads["sdpa"], rtol=1e-5, atol=1e-8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(ModelError, match="mask"):
        model(input_ids=ids, attention_mask=mask)


def test_sinks_of_a_model_are_refused_and_not_left_out() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    from instar.doors import hf_gradients

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_experts_per_tok": 1, "pad_token_id": 0}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, layer_types=["full_attention"], attn_implementation="eager"))
    model.set_attn_implementation(hf_gradients.register())
    with pytest.raises(ModelError, match="sinks"):
        model(input_ids=torch.ones(1, 5, dtype=torch.int64), use_cache=False)
