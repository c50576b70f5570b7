"""The fast 8-bit layer equals its reference, shares what it may, and keeps MiniLM's vectors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.checks.transform_models import answers, encoder
from instar.compression import int8_product, load, quantize_, save
from instar.compression.int8 import Int8
from instar.compression.int8_linear import Int8Linear
from instar.errors import MissingExtraError, ShapeError, TransformError


def layer(
    outputs: int = 24, inputs: int = 40, columns: tuple[int, ...] = (3, 17), bias: bool = True
) -> tuple[Int8Linear, Tensor]:
    draw = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=draw)
    made = Int8Linear.parts_of(weight, torch.tensor(columns, dtype=torch.int64))
    return Int8Linear(made, (outputs, inputs), nn.Parameter(torch.randn(outputs)) if bias else None), weight


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (2, 3, 40), (0, 40), (1500, 40)])
@pytest.mark.parametrize("columns", [(), (3, 17)])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_equals_reference(shape: tuple[int, ...], columns: tuple[int, ...], bias: bool) -> None:
    made, _ = layer(columns=columns, bias=bias)
    x = torch.randn(shape) * torch.exp(torch.randn(40))
    with torch.no_grad():
        fast, slow = made(x), made.reference(x)
    assert fast.shape == (*shape[:-1], 24)
    assert torch.allclose(fast, slow, rtol=1e-5, atol=1e-4)
    assert int8_product.exact_products("cpu", 24, 40)  # the fast form ran


def test_every_form_of_the_product_says_the_same() -> None:
    """oneDNN's fused product and torch's plain one, in place of each other; codes that were written meanwhile are seen."""
    made, _ = layer()
    x = torch.randn(9, 40)
    with torch.no_grad():
        first = made(x)
        made.codes.neg_()
        fused = made(x)
        with int8_product.unpacked():
            plain = made(x)
        made.codes = made.codes.t().contiguous().t()
        assert torch.equal(made(x), fused)  # whatever its strides
    assert torch.allclose(fused, plain, rtol=1e-6, atol=1e-5)
    assert not torch.allclose(fused, first)
    with torch.inference_mode():
        built_there, _ = layer()
        assert torch.allclose(built_there(x), built_there.reference(x), rtol=1e-5, atol=1e-4)


def test_signed_and_unsigned_activations_give_the_same_sums() -> None:
    """Which of the two oneDNN is quick at differs between processors; codes of 6 bits never saturate, on any."""
    q, codes = torch.randint(-128, 128, (9, 64), dtype=torch.int8), torch.randint(-63, 64, (24, 64), dtype=torch.int8)
    q[0], q[1] = -128, 127
    packed = torch.ops.onednn.qlinear_prepack(codes, None), torch.zeros(24, dtype=torch.int64)
    exact = (q.long() @ codes.long().t()).float()
    for offset in (0, 128):
        assert torch.equal(int8_product._fused(q, packed, torch.ones(24), offset), exact)


def test_the_integer_sum_is_exact() -> None:
    """Integers in, a step of 1: the result has no rounding at all."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (8, 64), generator=draw).float()
    weight[:, 0] = 127
    x = torch.randint(-127, 128, (5, 64), generator=draw).float()
    x[:, 0] = 127
    made = Int8Linear(Int8Linear.parts_of(weight, torch.empty(0, dtype=torch.int64)), (8, 64))
    with torch.no_grad():
        assert torch.equal(made(x), (x.double() @ weight.double().T).float())


def test_channels_kept_are_exact_and_do_not_coarsen_the_rest() -> None:
    made, weight = layer(bias=False)
    assert torch.equal(made.weight[:, [3, 17]], weight[:, [3, 17]])
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    x[:, [3, 17]] *= 1000
    plain, _ = layer(columns=(), bias=False)
    expected = x @ weight.T
    with torch.no_grad():
        error, worse = ((m(x) - expected).norm() / expected.norm() for m in (made, plain))
    assert 20 * error < worse


def test_rows_are_independent_and_nan_stays_in_its_row() -> None:
    made, _ = layer()
    x = torch.randn(6, 40)
    with torch.no_grad():
        whole = made(x)
        assert torch.allclose(whole, torch.cat([made(row[None]) for row in x]), rtol=1e-5, atol=1e-5)
        x[2, 5] = torch.nan
        hurt = made(x)
    assert hurt[2].isnan().all()
    assert torch.equal(hurt[[0, 1, 3, 4, 5]], whole[[0, 1, 3, 4, 5]])


def test_a_shared_input_that_was_written_meanwhile_is_seen() -> None:
    first, _ = layer()
    second = copy.deepcopy(first)
    x = torch.randn(4, 40)
    with torch.no_grad():
        first(x)
        assert torch.equal(second(x), second(x.clone()))
        x.mul_(-1)
        assert torch.equal(second(x), second(x.clone()))
    with torch.inference_mode():
        y = torch.randn(4, 40)
        first(y)
        y.mul_(-1)
        assert torch.equal(second(y), second(y.clone()))


@pytest.mark.parametrize("of", [lambda p: p, lambda p: p[1:]], ids=["itself", "a view"])
def test_an_input_that_a_fused_optimiser_steps_is_seen(of: Any) -> None:
    first, _ = layer()
    p = nn.Parameter(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)))
    optimiser = torch.optim.AdamW([p], lr=1.0, fused=True)
    with torch.no_grad():
        x = of(p)
        before = first(x)
    p.grad = torch.ones_like(p)
    optimiser.step()
    with torch.no_grad():
        assert not torch.equal(first(x), before)
        assert torch.equal(first(x), first(x.clone()))


def test_gradients_pass_straight_through() -> None:
    made, _ = layer()
    x = torch.randn(4, 40, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, made.weight.sum(0).expand(4, 40), atol=1e-5)


def test_other_precisions_come_back_as_they_came() -> None:
    made, _ = layer()
    x = torch.randn(4, 40)
    with torch.no_grad():
        half = made(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert torch.allclose(half.float(), made(x), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_a_layer_that_is_cast_goes_on(dtype: torch.dtype, columns: tuple[int, ...]) -> None:
    made, _ = layer(columns=columns)
    x = torch.randn(4, 40)
    with torch.no_grad():
        before = made(x)
        found = made.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert {made.scale.dtype, made.exact.dtype} == {torch.float32}
    torch.testing.assert_close(found.float(), before, rtol=0.02, atol=0.2 if dtype == torch.bfloat16 else 0.05)


def test_a_machine_that_saturates_gets_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch._int_mm

    def saturating(a: Tensor, b: Tensor) -> Tensor:
        return real(a, b).clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    int8_product.exact_products.cache_clear()
    made, _ = layer()
    x = torch.randn(3, 40)
    try:
        with torch.no_grad():
            assert not int8_product.exact_products("cpu", 24, 40)
            assert torch.equal(made(x), made.reference(x))
    finally:
        int8_product.exact_products.cache_clear()


def test_data_choose_the_channels(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).train()
    rows = torch.randn(20, 12)
    rows[:, 7] *= 50
    Int8(outliers=1).apply(model, [rows[:10], rows[10:]])
    assert model[0].columns.tolist() == [7]
    assert model[2].columns.numel() == 1
    assert model.training
    assert not model[0]._forward_pre_hooks
    plain = nn.Sequential(nn.Linear(12, 8))
    Int8().apply(plain)  # reads no tokens: nothing is known of its inputs
    assert plain[0].columns.numel() == 0
    loaded = load(save(model, tmp_path / "model"), lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)))
    with torch.no_grad():
        assert torch.equal(loaded(rows), model(rows))
    with pytest.raises(TransformError, match="cannot be called"):
        Int8().apply(encoder(), [{"pixels": rows}])
    with pytest.raises(ShapeError, match="outliers"):
        Int8(outliers=-1)


def test_minilm_keeps_its_vectors() -> None:
    from instar.data import pretrained

    pytest.importorskip("transformers")
    try:
        model, tokenizer = pretrained.load("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))
    texts = [
        "what is the weather in Paris",
        "book a table for two",
        "how much money is left on my card",
        "tell me a joke",
        "wake me at six",
    ]
    rows = tokenizer(texts, return_tensors="pt", padding=True)
    kept = rows["attention_mask"].unsqueeze(-1)

    def vectors() -> Tensor:
        with torch.no_grad():
            return F.normalize((model(**rows).last_hidden_state * kept).sum(1) / kept.sum(1), dim=1)

    before = vectors()
    with quantize_(model, Int8(), lambda module, name: "pooler" not in name):
        assert float((vectors() * before).sum(1).mean()) > 0.998
    assert torch.equal(vectors(), before)


def test_a_tied_head_keeps_the_embedding_exact() -> None:
    model = encoder()
    before = answers(model)
    Int8().apply(model)
    assert isinstance(model.head, Int8Linear)
    assert isinstance(model.embedding, nn.Embedding)
    assert float(F.cosine_similarity(before.flatten(), answers(model).flatten(), 0)) > 0.999


def test_parts_that_are_not_there() -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(Exception, match=r"bits|weights"):
        Int8().apply(model)


def test_half_precision_with_biases_has_its_reference() -> None:
    made, _ = layer()
    made.bias = nn.Parameter(made.bias.bfloat16())  # type: ignore[union-attr]  # as a layer of such a model has
    x = torch.randn(5, 40).bfloat16().requires_grad_()
    made(x).float().square().sum().backward()  # gradients take the reference
    assert bool(x.grad.isfinite().all())  # type: ignore[union-attr]


class Scaled(nn.Embedding):
    """As Gemma's: rows are scaled in use."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 16.0


def test_a_table_that_does_more_than_looking_up_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(20, 16), nn.Linear(16, 8)).eval()
    ids = torch.arange(6)
    before = model(ids)
    quantize_(model, Int8(embeddings=True))
    assert type(model[0]) is Scaled
    assert torch.allclose(model(ids), before, rtol=0.05, atol=0.2)
