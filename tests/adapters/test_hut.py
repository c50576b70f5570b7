"""HUT against its equation, its special cases, and the other way of computing it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters import HUT, BitFit, merge, off, parameters, unmerge
from instar.adapters import hut_product as product
from instar.errors import AdapterError, ShapeError

SIZES = [(24, 16, 4), (24, 16, 8), (24, 16, 1), (24, 16, 5), (9, 10, 8)]
"""Inputs, outputs, rank; the last two are not divided by it."""
T = 7


def made(inputs: int = 24, outputs: int = 16, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).double()


def learn(model: nn.Module, size: float = 0.1) -> list[nn.Parameter]:
    torch.manual_seed(1)
    trained = parameters(model)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(size * torch.randn_like(parameter))
    return trained


def weights(inputs: int, outputs: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    made = (torch.randn(outputs, inputs), 1 + 0.1 * torch.randn(inputs, r), 1 + 0.1 * torch.randn(r, outputs))
    return tuple(t.double() for t in made)  # type: ignore[return-value]


@pytest.mark.parametrize(("inputs", "outputs", "r"), SIZES)
@pytest.mark.parametrize("layout", ["block", "tile"])
def test_formed_weight_is_the_equation_element_by_element(inputs: int, outputs: int, r: int, layout: product.Layout) -> None:
    weight, A, B = weights(inputs, outputs, r)
    found = product.formed(weight, A, B, layout)
    for j in range(outputs):
        for i in range(inputs):
            a = j % r if layout == "tile" else j // -(-outputs // r)
            b = i % r if layout == "tile" else i // -(-inputs // r)
            assert float(found[j, i]) == pytest.approx(float(A[i, a] * weight[j, i] * B[b, j]), abs=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "r"), SIZES)
@pytest.mark.parametrize("layout", ["block", "tile"])
def test_both_spaces_agree_with_the_reference_in_values_and_gradients(
    inputs: int, outputs: int, r: int, layout: product.Layout
) -> None:
    weight, A, B = weights(inputs, outputs, r)
    x, bias, out = torch.randn(2, T, inputs).double(), torch.randn(outputs).double(), torch.randn(2, T, outputs).double()

    def observed(space: str) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, A, B, bias)]
        x_, A_, B_, bias_ = leaves
        if space == "reference":
            y = F.linear(x_, product.formed(weight, A_, B_, layout), bias_)
        else:
            call = product.in_weight_space if space == "weight" else product.in_activation_space
            y = call(x_, weight, bias_, A_, B_, layout)
        return [y, *torch.autograd.grad((y * out).sum(), leaves)]

    wanted = observed("reference")
    for space in ("weight", "activation") if product.divides(weight, r) else ("weight",):
        for found, want in zip(observed(space), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-10)


def test_a_transposed_weight_and_no_bias() -> None:
    weight, A, B = weights(24, 16, 4)
    stored = weight.T.contiguous().T  # as Conv1D keeps it
    x = torch.randn(T, 24).double()
    wanted = x @ product.formed(weight, A, B, "block").T
    for call in (product.in_weight_space, product.in_activation_space):
        torch.testing.assert_close(call(x, stored, None, A, B, "block"), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["block", "tile", "lowrank"])
@pytest.mark.parametrize("affine", ["pre", "post", "scale", "shift", "none"])
@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_at_birth_every_bit_is_as_before(form: str, affine: str, factors: str) -> None:
    model, x = made().float(), torch.randn(3, T, 24)
    before = model(x)
    HUT(r=4, form=form, affine=affine, factors=factors, impl="weight").attach(model, "0")  # type: ignore[arg-type]
    assert torch.equal(model(x), before)


def test_rank_one_scales_rows_and_columns() -> None:
    model, x = made(), torch.randn(T, 24).double()
    HUT(r=1, affine="none").attach(model, "0")
    A, B = learn(model)
    layer = model[0].base_layer
    wanted = x @ (torch.diag(A[:, 0]) @ layer.weight.T @ torch.diag(B[0])) + layer.bias
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-12)


def test_one_row_for_all_inputs_is_ia3_on_the_output_before_the_bias() -> None:
    model, x = made(), torch.randn(T, 24).double()
    HUT(r=1, affine="none", factors="b").attach(model, "0")
    (B,) = learn(model)
    layer = model[0].base_layer
    torch.testing.assert_close(model(x), B[0] * F.linear(x, layer.weight) + layer.bias, rtol=0, atol=1e-12)


def test_gamma_and_beta_alone_are_ssf_and_beta_alone_is_bitfit() -> None:
    model, x = made(), torch.randn(T, 24).double()
    before = model(x)
    HUT(factors="none", affine="post").attach(model, "0")
    gamma, beta = learn(model)
    torch.testing.assert_close(model(x), gamma * before + beta, rtol=0, atol=1e-12)
    first, second = made(), made()
    HUT(factors="none", affine="shift").attach(first, "0")
    BitFit().attach(second, "0")
    learn(first)
    learn(second)
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=1e-12)


def test_zeros_and_signs_stay_and_the_change_has_full_rank() -> None:
    weight, A, B = weights(24, 16, 4)
    weight[weight.abs() < 0.3] = 0.0
    found = product.formed(weight, A, B, "block")
    assert torch.equal(found == 0, weight == 0)
    assert torch.equal(found.sign(), weight.sign())
    assert int(torch.linalg.matrix_rank(found - weight)) == 16  # of rank 4, as LoRA's would be, it is not


def test_one_scale_moves_from_a_block_of_a_to_one_of_b_without_effect() -> None:
    weight, A, B = weights(24, 16, 4)
    wanted = product.formed(weight, A, B, "block")
    A, B = A.clone(), B.clone()
    A[6:12, 2] *= 3.0  # block b = 1 of the inputs, column a = 2
    B[1, 8:12] /= 3.0
    torch.testing.assert_close(product.formed(weight, A, B, "block"), wanted, rtol=0, atol=1e-12)


def test_merging_two_multiplies_their_multipliers_and_unmerge_brings_the_bits_back() -> None:
    model, x = made(), torch.randn(T, 24).double()
    weight = model[0].weight.detach().clone()
    forms = []
    for name in ("one", "two"):
        HUT(r=4, affine="none").attach(model, "0", name=name)
        learn(model, 0.1 if name == "one" else 0.2)
        A, B = parameters(model)
        forms.append(product.formed(torch.ones_like(weight), A.detach(), B.detach(), "block"))
    merge(model, "one")
    merge(model, "two")
    torch.testing.assert_close(model[0].base_layer.weight.detach(), weight * forms[0] * forms[1], rtol=0, atol=1e-12)
    unmerge(model)
    assert torch.equal(model[0].base_layer.weight, weight)
    with off(model):
        assert torch.equal(model(x), F.linear(x, weight, model[0].base_layer.bias))


def test_parameters_are_counted_as_the_formula_says_and_without_a_bias_there_is_no_beta() -> None:
    for bias, wanted in ((True, 4 * (24 + 16) + 2 * 16), (False, 4 * (24 + 16) + 16)):
        model = made(bias=bias)
        HUT(r=4).attach(model, "0")
        assert sum(p.numel() for p in parameters(model)) == wanted


@pytest.mark.parametrize("factors", ["both", "a", "b", "none"])
def test_an_attached_adapter_goes_with_the_model_to_another_type(factors: str) -> None:
    model, x = made().float(), torch.randn(T, 24)
    HUT(r=4, factors=factors).attach(model, "0")  # type: ignore[arg-type]
    learn(model)
    single = model(x)
    torch.testing.assert_close(model.double()(x.double()), single.double(), rtol=0, atol=1e-5)


def test_the_choice_of_space_follows_the_count() -> None:
    assert product.cheaper_weight(512, 384, 384, 8, training=False)
    assert not product.cheaper_weight(4, 384, 384, 8, training=False)
    assert not product.cheaper_weight(4096, 4096, 4096, 1, training=True)
    assert product.cheaper_weight(512, 384, 384, 16, training=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"r": 0},
        {"form": "blocks"},
        {"affine": "both"},
        {"impl": "fast"},
        {"form": "lowrank", "impl": "activation"},
        {"factors": "none", "affine": "none"},
        {"dropout": 1.0},
        {"lr": 0.0},
        {"rank_pattern": {"(": 3}},
        {"rank_pattern": {"q": 0}},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ShapeError):
        HUT(**wrong)  # type: ignore[arg-type]


def test_ranks_that_do_not_fit_a_layer_are_refused() -> None:
    for settings in ({"r": 17}, {"r": 5, "impl": "activation"}):
        with pytest.raises(ShapeError, match="rank"):
            HUT(**settings).attach(made(), "0")  # type: ignore[arg-type]


def test_one_that_is_merged_is_not_merged_again() -> None:
    model, x = made(), torch.randn(T, 24).double()
    HUT(r=4).attach(model, "0", name="one")
    learn(model, 0.1)
    merge(model, "one")
    before = model(x)
    with pytest.raises(AdapterError, match="'one' is merged already"):
        merge(model, "one")
    assert torch.equal(model(x), before)
    unmerge(model)
    merge(model, "one")
    assert torch.equal(model(x), before)


def test_a_model_that_is_cast_while_merged_is_of_one_type_afterwards() -> None:
    model = made()
    weight = model[0].weight.detach().clone()
    HUT(r=4).attach(model, "0")
    learn(model, 0.1)
    merge(model)
    model.bfloat16()
    unmerge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model[0].base_layer.weight, weight.bfloat16())
