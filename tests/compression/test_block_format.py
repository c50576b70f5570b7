"""The block format: closed forms of the specification, on values of every size."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.compression import packing, slabs
from instar.compression.blocks import BlockFormat, exponents, power_of_two
from instar.compression.gguf_blocks import GgufFormat
from instar.errors import ShapeError, TransformError

SCALES = ["power", "power_mse", "float16", "float32"]


def values(rows: int, columns: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    """Numbers whose sizes differ by orders of magnitude, as those of a residual stream do."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * torch.exp(spread * torch.randn(rows, columns, generator=draw))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 16),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
    st.integers(0, 70),
    st.sampled_from(SCALES),
    st.integers(0, 99),
)
def test_a_stored_tensor_is_what_was_quantised(
    bits: int, rows: int, columns: int, tile: int, block: int, scale: str, seed: int
) -> None:
    fmt = BlockFormat(bits, tile, block, scale)
    x = values(rows, columns, 1.0, seed)
    made, parts = fmt.quantise(x), fmt.encode(x)
    assert torch.equal(fmt.decode(parts, (rows, columns)), made.dequantise())
    ids = torch.randint(rows, (7,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(fmt.lookup(parts, (rows, columns), ids), made.dequantise()[ids])
    blank = fmt.blank((rows, columns))
    assert {n: (t.shape, t.dtype) for n, t in parts.items()} == {n: (t.shape, t.dtype) for n, t in blank.items()}
    assert (
        sum(t.numel() * t.element_size() for t in parts.values())
        < rows * columns * -(-max(bits, 8) // 8) + 4 * made.scale.numel() + 16
    )


@pytest.mark.parametrize("bits", range(2, 17))
def test_packing_keeps_every_value(bits: int) -> None:
    q = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    for length in {1, min(7, len(q)), len(q)}:
        packed = packing.pack(q[:length], bits)
        assert torch.equal(packing.unpack(packed, bits, (length,)).long(), q[:length])
        assert packed.shape == packing.packed_shape(bits, (length,))
        assert packed.dtype == packing.packed_dtype(bits)


@pytest.mark.parametrize(("bits", "rows", "block"), list(itertools.product([3, 4, 8], [1, 4], [16, 64])))
def test_no_clip_errs_by_half_a_step_at_most_and_is_idempotent(bits: int, rows: int, block: int) -> None:
    fmt = BlockFormat(bits, rows, block)
    x = values(13, 150)
    made = fmt.quantise(x)
    half = fmt.spread(torch.ones_like(x), made.steps() / 2)
    found = made.dequantise()
    assert bool(((x - found).abs() <= half).all())
    assert torch.equal(fmt.quantise(found).dequantise(), found)
    assert made.q.min() >= -fmt.largest
    assert made.q.max() <= fmt.largest
    assert torch.equal(fmt.quantise(-x).dequantise(), -found)


def test_scaling_by_a_power_of_two_moves_the_exponent_alone() -> None:
    x = values(8, 96)
    for scale, n in itertools.product(["power", "power_mse"], [-20, -1, 1, 30]):
        fmt = BlockFormat(4, 1, 32, scale)
        a, b = fmt.quantise(x), fmt.quantise(x * 2.0**n)
        assert torch.equal(a.q, b.q)
        assert torch.equal(a.scale.long() - n, b.scale.long())


@pytest.mark.parametrize("bits", [3, 4, 8, 16])
def test_exponents_are_exact_at_powers_of_two(bits: int) -> None:
    """log2 in float32 is not: what is a power of two must get the exponent of the definition, in integers."""
    most = 2 ** (bits - 1) - 1
    for n in range(-100, 100):
        for top in (2.0**n, 2.0**n * most, 2.0**n * (1 - 2**-24), 2.0**n * (1 + 2**-23)):
            e = int(exponents(torch.tensor([top]), bits))
            exact = float(torch.tensor(top, dtype=torch.float32))
            assert exact * 2.0**e <= most < exact * 2.0 ** (e + 1)


def test_powers_of_two_are_exact() -> None:
    n = torch.arange(-126, 128)
    assert power_of_two(n, torch.float32).tolist() == [2.0**k for k in n.tolist()]


FORMATS = [*(BlockFormat(bits, rows, block) for bits in (3, 4, 8, 16) for rows, block in ((1, 32), (3, 0), (64, 5), (0, 32)))]
FORMATS += [BlockFormat(5, 1, 32, "float16"), BlockFormat(4, 2, 32, "power_mse")]


@pytest.mark.parametrize("format", [*FORMATS, GgufFormat("Q8_0"), GgufFormat("Q4_1")], ids=str)
@pytest.mark.parametrize("rows", [1, 100, 101])
def test_large_weights_are_treated_in_slabs_to_the_bit(
    format: BlockFormat | GgufFormat, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values(rows, 64, 1.0)
    whole = format.encode(x)
    spread = format.decode(whole, (rows, 64))
    monkeypatch.setattr(slabs, "_ELEMENTS", 700)
    parts = format.encode(x)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) and parts[name].dtype == whole[name].dtype for name in parts)
    assert torch.equal(format.decode(parts, (rows, 64)), spread)


def test_values_on_the_grid_are_exact_and_blocks_do_not_see_each_other() -> None:
    fmt = BlockFormat(8, 1, 16)
    grid = torch.randint(-127, 128, (5, 64), generator=torch.Generator().manual_seed(1)) * 2.0**-9
    assert torch.equal(fmt.quantise(grid).dequantise(), grid)
    x = values(4, 64)
    order = torch.tensor([2, 0, 3, 1])
    moved = x.view(4, 4, 16)[:, order].reshape(4, 64)
    assert torch.equal(fmt.quantise(moved).dequantise(), fmt.quantise(x).dequantise().view(4, 4, 16)[:, order].reshape(4, 64))


def test_a_whole_tensor_is_one_block_and_a_block_of_one_is_nearly_exact() -> None:
    x = values(6, 50)
    whole = BlockFormat(8, 0, 0).quantise(x)
    e = int(exponents(x.abs().max()[None], 8))
    assert torch.equal(whole.dequantise(), (x * 2.0**e).round() * 2.0**-e)
    one = BlockFormat(8, 1, 1).quantise(x).dequantise()
    assert float(((one - x) / x).abs().max()) <= 1 / 127


def test_choosing_by_error_is_never_worse_and_finer_bits_halve_it() -> None:
    x = values(32, 256, 0.3)
    errors = {}
    for bits, scale in itertools.product([3, 4, 5, 6, 7, 8], ["power", "power_mse", "float32"]):
        errors[bits, scale] = float((BlockFormat(bits, 1, 32, scale).quantise(x).dequantise() - x).norm())
    for bits in range(3, 9):
        assert errors[bits, "power_mse"] <= errors[bits, "power"]
        assert errors[bits, "float32"] <= errors[bits, "power"]
    for bits in range(3, 8):
        assert 1.6 < errors[bits, "power"] / errors[bits + 1, "power"] < 2.6


def test_eight_bits_in_blocks_of_32_are_mxint8_where_that_does_not_clip() -> None:
    """OCP MX: the scale is 2^⌊log2 max⌋ and elements have 6 bits after the point, which clips beyond 127/64 of it."""
    x = values(16, 128, 0.5)
    top = x.view(16, 4, 32).abs().amax(2)
    mx = 2.0 ** (torch.frexp(top).exponent - 1)
    elements = (x.view(16, 4, 32) / mx[..., None] * 64).round()
    ours = BlockFormat(8, 1, 32).quantise(x).dequantise().view(16, 4, 32)
    unclipped = elements.abs().amax(2) <= 127
    exact = unclipped & (top / mx * 64 <= 127)
    assert exact.sum() > 10
    assert torch.equal(ours[exact], (elements * mx[..., None] / 64)[exact])


def test_zeros_tiny_and_huge_blocks() -> None:
    fmt = BlockFormat(8, 1, 8)
    x = torch.zeros(4, 8)
    x[1] = 1e-38
    x[2, 0] = 3e38
    x[3, 3] = 2.0**-120
    made = fmt.quantise(x)
    assert made.scale[:2].tolist() == [[0], [0]]
    assert not made.q[:2].any()
    found = made.dequantise()
    assert torch.isfinite(found).all()
    assert float(found[2, 0]) == pytest.approx(3e38, rel=1 / 127)
    assert float(found[3, 3]) == 2.0**-120


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = values(4, 8)
    x[2, 3] = bad
    for scale in SCALES:
        with pytest.raises(TransformError, match="NaN or infinity"):
            BlockFormat(8, 1, 4, scale).quantise(x)
    with pytest.raises(TransformError, match="float16"):
        BlockFormat(4, 1, 4, "float16").quantise(torch.full((1, 4), 1e30))


@pytest.mark.parametrize(
    ("bits", "rows", "block", "scale"), [(1, 1, 1, "power"), (17, 1, 1, "power"), (8, -1, 1, "power"), (8, 1, 1, "log")]
)
def test_formats_that_do_not_exist(bits: int, rows: int, block: int, scale: str) -> None:
    with pytest.raises(ShapeError, match="block format expects"):
        BlockFormat(bits, rows, block, scale)
