"""Integer arithmetic and its simulation: exact against Python's integers, and the same bits in every layer."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.checks.transform_models import answers, conv1d
from instar.compression import arithmetic, quantize_, whole
from instar.compression.blocks import BlockFormat, Blocks, power_of_two
from instar.compression.blockwise import Blockwise
from instar.errors import MissingExtraError, ShapeError, UnknownNameError

BOTH = [arithmetic.Simulated(), arithmetic.Integers()]
BACKENDS: list[arithmetic.Backend] = ["simulate", "integer"]


@pytest.mark.parametrize("how", BOTH, ids=lambda how: type(how).__name__)
def test_shift_divide_and_root_are_those_of_integers(how: Any) -> None:
    draw = random.Random(0)
    for n in range(-40, 20):
        values = [draw.randint(-(2**31), 2**31) for _ in range(20)] + [0, 1, -1, 2, -2, 3, 6, 10, -6, 2**31, -(2**31)]
        found = how.shift(how.number(torch.tensor(values)), torch.tensor(n))
        assert found.long().tolist() == [round(Fraction(v) * Fraction(2) ** n) for v in values]
    above = [draw.randint(-(2**40), 2**40) for _ in range(200)] + [5, -5, 0]
    below = [draw.randint(1, 2**20) for _ in range(200)] + [10, 10, 7]
    found = how.divide(how.number(torch.tensor(above)), how.number(torch.tensor(below)))
    assert found.long().tolist() == [math.floor(Fraction(a, b) + Fraction(1, 2)) for a, b in zip(above, below, strict=True)]
    squares = [0, 1, 2, 3, 4, 2**53 - 1, 2**52] + [draw.randint(0, 2**53 - 1) for _ in range(100)]
    squares += [k * k + d for k in (3, 1000, 94906265, 2**26 - 1) for d in (-1, 0, 1) if k * k + d < 2**53]
    assert how.root(how.number(torch.tensor(squares))).long().tolist() == [math.isqrt(v) for v in squares]


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("block", [7, 16, 64])
def test_requantised_blocks_are_the_same_bits(bits: int, block: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    v = torch.randint(-(2**30), 2**30, (9, 50), generator=draw) >> torch.randint(0, 31, (9, 50), generator=draw)
    v[2], v[3, 3:] = 0, 0
    v[4, :4] = torch.tensor([255, -255, 127, 128])
    n = torch.randint(0, 20, (9, 50), generator=draw)
    a, b = (how.requantise(how.number(v), n, BlockFormat(bits, 1, block)) for how in BOTH)
    assert torch.equal(a.q, b.q)
    assert torch.equal(a.scale, b.scale)
    exact = v * power_of_two(-n)
    assert bool(((a.dequantise(torch.float64) - exact).abs() <= a.format.spread(torch.ones(9, 50), a.steps() / 2)).all())


def operands(K: int, spread: float, rows: int = 1, seed: int = 0) -> tuple[Blocks, Blocks]:
    draw = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(s, K, generator=draw) * torch.exp(spread * torch.randn(s, K, generator=draw)) for s in (6, 10))
    return BlockFormat(8, 1, 16).quantise(x), BlockFormat(8, rows, 16).quantise(w)


@pytest.mark.parametrize(("K", "spread", "rows"), [(48, 0.1, 1), (48, 0.1, 4), (300, 2.0, 1), (10, 1.0, 1)])
def test_products_of_blocks(K: int, spread: float, rows: int) -> None:
    x, w = operands(K, spread, rows)
    bias = torch.randn(10)
    found = [arithmetic.matmul(how, x, w, bias) for how in BOTH]
    assert torch.equal(found[0][0].long(), found[1][0].long())
    assert torch.equal(found[0][1], found[1][1])
    v, n = found[1]
    assert int(v.abs().max()) < 2**31
    exact = x.dequantise(torch.float64) @ w.dequantise(torch.float64).T + bias.double()
    terms = -(-K // 16) + 1  # each rounded by half a unit at most
    assert bool(((v * power_of_two(-n) - exact).abs() <= terms / 2 * power_of_two(-n)).all())


def test_the_largest_products_fit_into_32_bits() -> None:
    for K in (16, 384, 4096):
        q = torch.full((1, K), -128, dtype=torch.int8)
        e = torch.zeros(1, -(-K // 16), dtype=torch.int8)
        e[0, 1:] = 20  # finer blocks beside a coarse one
        blocks = Blocks(q, e, BlockFormat(8, 1, 16))
        v, _ = arithmetic.matmul(BOTH[1], blocks, blocks, torch.tensor([1e4]))
        assert int(v.abs().max()) < 2**31


def test_linear_layers_of_both_back_ends() -> None:
    plain = nn.Sequential(nn.Linear(70, 33), nn.Linear(33, 5, bias=False))
    x = torch.randn(2, 9, 70) * torch.exp(torch.randn(70))
    found = []
    for backend in BACKENDS:
        with Blockwise(block=16, activations="results", backend=backend).apply(plain):
            assert isinstance(plain[0], whole.BlockLinear)
            found.append(plain(x).detach())
            grad = torch.autograd.functional.jacobian(lambda one: plain(one).sum(), x[0, :1])
            assert torch.allclose(grad, (torch.ones(1, 5) @ plain[1].weight @ plain[0].weight), atol=1e-4)
    assert torch.equal(*found)
    exact = plain(x).detach()
    assert float((found[0] - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("name", whole.FUNCTIONS)
def test_tables_are_within_half_a_step_and_as_the_simulation(name: str) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(20, 40, generator=draw) * torch.exp(2 * torch.randn(20, 1, generator=draw))
    x[4] = 0
    fmt = BlockFormat(8, 1, 16)
    table, direct = (whole.BlockActivation(name, fmt, backend)(x) for backend in reversed(BACKENDS))
    assert torch.equal(table, direct)
    made = fmt.quantise(x)
    exact = whole.FUNCTIONS[name](made.dequantise(torch.float64))
    layer = whole.BlockActivation(name, fmt, "integer")
    steps = torch.tensor([[2.0 ** -layer.table(int(e))[1] for e in row] for row in made.scale])
    assert bool(((table - exact).abs() <= fmt.spread(torch.ones_like(x), steps / 2) * (1 + 1e-6)).all())


def test_softmax_sums_to_one_and_masks_exactly() -> None:
    scores = 5 * torch.randn(4, 3, 7, 20, generator=torch.Generator().manual_seed(4))
    allowed = torch.rand(scores.shape, generator=torch.Generator().manual_seed(5)) > 0.3
    allowed[0, 0, 0] = False
    scores = scores.masked_fill(~allowed, -1e9)
    a, b = (whole.softmax(scores, allowed, backend) for backend in BACKENDS)
    assert torch.equal(a.long(), b.long())
    assert not b[~allowed].any()
    p = a / 256
    some = allowed.any(-1)
    assert float((p.sum(-1)[some] - 1).abs().max()) <= 20 * 2.0**-9
    assert float((p - torch.softmax(scores.double(), -1))[some].abs().max()) < 0.06
    assert int(whole.softmax(torch.zeros(1, 1), None, "integer")) == 255


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [8, 64, 384])
def test_norms(centred: bool, width: int) -> None:
    torch.manual_seed(width)
    plain: Any = nn.LayerNorm(width, eps=1e-6) if centred else nn.RMSNorm(width, eps=1e-6)
    with torch.no_grad():
        plain.weight.mul_(torch.rand(width) + 0.5)
        if centred:
            plain.bias.normal_()
    x = 3 + torch.randn(11, width) * torch.exp(torch.randn(11, 1))
    x[2], x[3, 1:] = 0, 0
    x[4, 0] = 25_000
    found = []
    for backend in BACKENDS:
        given = whole.norm_of(plain)
        assert given is not None
        parts = whole.BlockNorm.parts_of(given[0], given[1], 64)
        found.append(whole.BlockNorm(parts, width, given[2], given[3], BlockFormat(8, 1, 64), backend)(x))
    assert torch.equal(*found)
    exact = plain(x).detach()
    limit = exact.abs().amax(1, keepdim=True) / 50 + 0.02
    assert bool(((found[0] - exact).abs() <= limit)[[0, 1, 2, 4, 5, 6, 7, 8, 9, 10]].all())
    if centred:
        plainest = whole.BlockNorm(whole.BlockNorm.parts_of(torch.ones(width), torch.full((width,), 0.5), 64), width, 1e-6, True,
                                   BlockFormat(8, 1, 64), "integer")  # fmt: skip
        assert float((plainest(x).mean(1) - 0.5).abs().max()) < 0.05


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("centred", [True, False])
def test_small_rows_are_not_made_large(centred: bool, eps: float) -> None:
    """Far below √ε a norm hardly scales any more: what is nearly 0 stays so."""
    torch.manual_seed(0)
    plain: Any = nn.LayerNorm(384, eps=eps) if centred else nn.RMSNorm(384, eps=eps)
    x = torch.randn(8, 384) * torch.tensor([1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-30])[:, None]
    given = whole.norm_of(plain)
    assert given is not None
    parts = whole.BlockNorm.parts_of(given[0], given[1], 64)
    found = [whole.BlockNorm(parts, 384, eps, centred, BlockFormat(8, 1, 64), backend)(x) for backend in BACKENDS]
    assert torch.equal(*found)
    exact = plain(x).detach()
    rounding = 384**0.5 * 2**-13  # of a normalised value, which has 12 bits after the point
    assert bool(((found[0] - exact).norm(dim=1) <= exact.norm(dim=1) / 50 + rounding).all())


def test_attention_is_that_of_torch() -> None:
    draw = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(2, 3, 18, 16, generator=draw) for _ in range(3))
    allowed = torch.ones(18, 18, dtype=torch.bool).tril().expand(2, 3, 18, 18)
    a, b = (whole.attention(q, k, v, allowed, 0.25, backend) for backend in BACKENDS)
    assert torch.equal(a, b)
    exact = F.scaled_dot_product_attention(q, k, v, allowed, scale=0.25).transpose(1, 2)
    assert float((a - exact).norm() / exact.norm()) < 0.03


def test_a_causal_model_in_block_integers_is_causal_and_comes_back() -> None:
    model = conv1d()
    if model is None:
        pytest.skip("transformers is not installed")
    before, implementation = answers(model), model.config._attn_implementation  # type: ignore[union-attr]
    found = []
    for backend in BACKENDS:
        with Blockwise(block=16, activations="all", backend=backend).apply(model), torch.no_grad():
            ids = torch.arange(24).view(2, 12) * 7 % 64
            found.append(answers(model))
            changed = ids.clone()
            changed[:, 8:] = 5
            assert torch.equal(model(ids).logits[:, :8], model(changed).logits[:, :8])
    assert torch.equal(*found)
    assert float(F.cosine_similarity(found[0].flatten(), before.flatten(), 0)) > 0.98
    assert torch.equal(answers(model), before)
    assert model.config._attn_implementation == implementation  # type: ignore[union-attr]


def test_minilm_in_block_integers_from_end_to_end() -> None:
    from instar.data import pretrained

    pytest.importorskip("transformers")
    try:
        model, tokenizer = pretrained.load("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))
    rows = tokenizer(["what is the weather in Paris", "book a table", "tell me a joke"], return_tensors="pt", padding=True)

    def states() -> Tensor:
        with torch.no_grad():
            return model(**rows).last_hidden_state[rows["attention_mask"].bool()]

    plain, found = states(), []
    for backend in BACKENDS:
        with quantize_(model, Blockwise(rows=1, block=32, activations="all", backend=backend)):
            found.append(states())
    assert torch.equal(*found)
    assert float(F.cosine_similarity(plain, found[0], dim=1).mean()) > 0.98
    with quantize_(model, Blockwise(bits=16, activation_bits=16, activations="results")):
        assert float((states() - plain).norm() / plain.norm()) < 1e-3


def test_what_has_no_integer_arithmetic() -> None:
    with pytest.raises(ShapeError, match="power of two"):
        Blockwise(activations="all", scale="float16")
    with pytest.raises(UnknownNameError, match="back-end"):
        Blockwise(activations="all", backend="cuda")  # type: ignore[arg-type]
