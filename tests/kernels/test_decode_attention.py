"""Decode attention: every form and schedule against softmax in float64, the algebra of partial results, and bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.errors import BuildError, ShapeError
from instar.kernels import decode_attention as kernel
from instar.kernels.decode_attention import DecodePlan, Partial, attend, decode_attention, merge_partials
from instar.kernels.decode_attention_partial import partial
from instar.kernels.decode_attention_schedule import SCHEDULES
from instar.kernels.quantised_rows import dequantise_rows, quantise_rows

FORMS = ["torch", "segments", "compiled"]
LENGTHS = [1, 130, 0, 64, 65, 300]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled":
        request.getfixturevalue("compiled")
    return request.param


def draw(
    dtype: torch.dtype = torch.float32, heads: int = 6, kv_heads: int = 2, width: int = 64, columns: int = 320, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    B = len(LENGTHS)
    sizes = ((B, heads, width), (B, kv_heads, columns, width), (B, kv_heads, columns, width))
    q, k, v = (torch.randn(size, dtype=torch.float64, generator=g).to(dtype) for size in sizes)
    return q, k, v


def direct(
    q: Tensor, k: Tensor, v: Tensor, lengths: Any, starts: Any = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v in float64, sequence by sequence, heads repeated."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs, levels = [], []
    for b, stop in enumerate(lengths):
        some = slice(0 if starts is None else starts[b], stop)
        keys, values = (t[b, :, some].double().repeat_interleave(q.shape[1] // k.shape[1], 0) for t in (k, v))
        x = scale * torch.einsum("hk,hlk->hl", q[b].double(), keys)
        outs.append(torch.einsum("hl,hlv->hv", x.softmax(-1), values))
        levels.append(x.logsumexp(-1))
    return torch.stack(outs), torch.stack(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 64), (5, 1, 32), (4, 4, 96), (8, 1, 128), (3, 3, 48)])
def test_every_form_is_softmax_attention(form: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> None:
    q, k, v = draw(dtype, heads, kv_heads, width)
    if form == "compiled" and (dtype == torch.float64 or width % 32):
        with pytest.raises(BuildError, match="multiples of 32"):
            decode_attention(q, k, v, LENGTHS, form="compiled")
        return
    out, lse = decode_attention(q, k, v, LENGTHS, return_lse=True, form=form)
    wanted, level = direct(q, k, v, LENGTHS)
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), level, rtol=1e-6, atol=4e-6)
    alone = decode_attention(q, k, v, LENGTHS, form=form)
    torch.testing.assert_close(alone.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("workers", [1, 2, 5, 100])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_workers_and_tiles_change_nothing(form: str, schedule: str, workers: int) -> None:
    q, k, v = draw()
    wanted, level = direct(q, k, v, LENGTHS)
    for tile in (1, 50, 64):
        out, lse = decode_attention(q, k, v, LENGTHS, schedule=schedule, workers=workers, tile=tile, return_lse=True, form=form)
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6)
        torch.testing.assert_close(lse.double(), level, rtol=0, atol=4e-6)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    workers=st.integers(1, 9),
    tile=st.integers(1, 20),
    schedule=st.sampled_from(SCHEDULES),
    seed=st.integers(0, 99),
)
def test_any_partition_is_softmax_in_float64(lengths: list[int], workers: int, tile: int, schedule: Any, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    B = len(lengths)
    q, k, v = (torch.randn(B, n, c, 8, dtype=torch.float64, generator=g) for n, c in ((4, 1), (2, 60), (2, 60)))
    plan = DecodePlan.of(lengths, 2, schedule=schedule, tile=tile, workers=workers)
    out, lse = attend(plan, q, k, v, form="segments", return_lse=True)
    wanted, level = direct(q[:, :, 0], k, v, lengths)
    assert out.shape == q.shape
    assert lse is not None
    torch.testing.assert_close(out[:, :, 0], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, level, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_partial_results_are_a_commutative_monoid(sizes: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(3, 4, dtype=torch.float64, generator=g)
    k, v = (torch.randn(sum(sizes), 4, dtype=torch.float64, generator=g) for _ in range(2))
    parts = [partial(q, a, b, 1.0) for a, b in zip(k.split(sizes), v.split(sizes), strict=True)]
    whole = partial(q, k, v, 1.0)

    def same(a: Partial, b: Partial) -> None:
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)

    same(merge_partials(parts), whole)
    same(merge_partials(parts[::-1]), whole)
    left = parts[0]
    for part in parts[1:]:
        left = merge_partials([left, part])
    same(left, whole)
    nothing = partial(q, k[:0], v[:0], 1.0)
    same(merge_partials([nothing, whole]), whole)
    same(merge_partials([nothing, nothing]), nothing)
    out, lse = whole.output()
    again, level = merge_partials([Partial(lse, torch.ones_like(lse), out)]).output()
    torch.testing.assert_close((again, level), (out, lse), rtol=0, atol=1e-12)


def test_only_what_must_be_read_is_read(form: str) -> None:
    q, k, v = draw(columns=310)
    starts = [0, 100, 0, 63, 65, 299]
    wanted, level = direct(q, k, v, LENGTHS, starts)
    for b, (start, stop) in enumerate(zip(starts, LENGTHS, strict=True)):
        for cache in (k, v):
            cache[b, :, :start] = torch.nan
            cache[b, :, stop:] = torch.nan
    out, lse = decode_attention(q, k, v, torch.tensor(LENGTHS), starts=torch.tensor(starts), return_lse=True, form=form)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), level, rtol=0, atol=4e-6)
    assert (out[2] == 0).all()
    assert (lse[4] == -math.inf).all()


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("page", [1, 16, 100])
def test_pages_in_any_order_are_a_contiguous_cache(form: str, layout: Any, page: int) -> None:
    q, k, v = draw(torch.bfloat16, columns=300)
    plain = decode_attention(q, k, v, LENGTHS, form=form)
    count = -(-300 // page)
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(len(LENGTHS) * count + 3, generator=g)[: len(LENGTHS) * count]
    pools = []
    for cache in (k, v):
        padded = torch.nn.functional.pad(cache, (0, 0, 0, count * page - 300), value=torch.nan)
        pool = torch.full((len(order) + 3, 2, page, 64), torch.nan, dtype=torch.bfloat16)
        pool[order] = padded.unflatten(2, (count, page)).transpose(1, 2).flatten(0, 1)
        pools.append(pool if layout == "bhld" else pool.transpose(1, 2).contiguous())
    table = order.view(len(LENGTHS), count).to(torch.int32)
    table[torch.arange(count) * page >= torch.tensor(LENGTHS).unsqueeze(1)] = 10**6  # never looked at
    paged = decode_attention(q, *pools, LENGTHS, page_table=table, layout=layout, form=form)
    torch.testing.assert_close(paged, plain, rtol=0, atol=0 if form == "compiled" else 4e-3)
    starts = [length // 3 for length in LENGTHS]
    paged = decode_attention(q, *pools, LENGTHS, page_table=table, layout=layout, starts=starts, form=form)
    torch.testing.assert_close(paged, decode_attention(q, k, v, LENGTHS, starts=starts, form=form), rtol=0, atol=4e-3)


def test_both_layouts_are_one(form: str) -> None:
    q, k, v = draw()
    turned = (t.transpose(1, 2).contiguous() for t in (k, v))
    torch.testing.assert_close(
        decode_attention(q, *turned, LENGTHS, layout="blhd", form=form),
        decode_attention(q, k, v, LENGTHS, form=form),
        rtol=0,
        atol=1e-6,
    )


def test_shifts_copies_and_permutations(form: str) -> None:
    q, k, v = draw(columns=130)
    lengths = [130] * len(LENGTHS)
    out, lse = decode_attention(q, k, v, lengths, return_lse=True, form=form)
    q[..., 0], k[..., 0] = 8.0, 0.0
    out, lse = decode_attention(q, k, v, lengths, return_lse=True, form=form)
    k[..., 0] = 3.0  # 3 · 8 / √64 more for every score
    moved, level = decode_attention(q, k, v, lengths, return_lse=True, form=form)
    torch.testing.assert_close(moved, out, rtol=0, atol=3e-6)
    torch.testing.assert_close(level, lse + 3.0, rtol=0, atol=5e-6)
    twice = [torch.cat([t, t], 2) for t in (k, v)]
    copied, doubled = decode_attention(q, *twice, [260] * len(LENGTHS), return_lse=True, form=form)
    torch.testing.assert_close(copied, moved, rtol=0, atol=1e-6)
    torch.testing.assert_close(doubled, level + math.log(2), rtol=0, atol=2e-6)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_attention(q, k[:, :, order], v[:, :, order], lengths, form=form), moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_with_scales_are_the_numbers_they_stand_for(
    form: str, dtype: torch.dtype, schedule: Any, layout: Any, paged: bool
) -> None:
    q, k, v = draw(heads=6, kv_heads=2, width=96)
    q, v = q.to(dtype), v[..., :64] * torch.logspace(-3, 3, 320)[:, None]
    k[3, :, 7] = 0
    (keys, of_keys), (values, of_values) = quantise_rows(k), quantise_rows(v)
    wanted, level = direct(q, dequantise_rows(keys, of_keys), dequantise_rows(values, of_values), LENGTHS)
    parts = [keys, values, of_keys, of_values]
    for b, stop in enumerate(LENGTHS):  # what lies behind is never read
        for part in parts[2:]:
            part[b, :, stop:] = torch.nan
    table = None
    if paged:
        table = torch.randperm(len(LENGTHS) * 8).view(len(LENGTHS), 8)
        pools = []
        for part in parts:
            pool = part.new_empty(len(LENGTHS) * 8, 2, 40, *part.shape[3:])
            pool[table.flatten()] = part.unflatten(2, (8, 40)).transpose(1, 2).flatten(0, 1)
            pools.append(pool)
        parts = pools
    if layout == "blhd":
        parts = [part.transpose(1, 2) for part in parts]
    out, lse = decode_attention(
        q,
        parts[0],
        parts[1],
        LENGTHS,
        scales=(parts[2], parts[3]),
        schedule=schedule,
        workers=3,
        layout=layout,
        page_table=table,
        return_lse=True,
        form=form,
    )
    tolerance = TOLERANCE[dtype]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    torch.testing.assert_close(lse.double(), level, rtol=1e-5, atol=1e-5)


def test_integers_are_near_what_was_rounded(form: str) -> None:
    q, k, v = draw()
    (keys, of_keys), (values, of_values) = quantise_rows(k), quantise_rows(v)
    out = decode_attention(q, keys, values, LENGTHS, scales=(of_keys, of_values), form=form)
    wanted, _ = direct(q, k, v, LENGTHS)
    error = (out.double() - wanted).norm() / wanted.norm()
    assert 1e-4 < float(error) < 1e-2


def test_rows_of_integers() -> None:
    x = torch.randn(5, 7, 33) * torch.logspace(-6, 6, 7)[:, None]
    whole, scale = quantise_rows(x)
    assert (whole.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (5, 7))
    assert int(whole.abs().amax(-1).min()) == 127
    assert bool(((dequantise_rows(whole, scale) - x).abs() <= 0.5001 * scale.unsqueeze(-1)).all())
    again, same = quantise_rows(dequantise_rows(whole, scale))
    assert torch.equal(again, whole)
    torch.testing.assert_close(same, scale)
    assert not dequantise_rows(*quantise_rows(torch.zeros(2, 8))).any()
    for bad in (torch.nan, torch.inf):
        row = torch.ones(2, 8).index_fill(1, torch.tensor([3]), bad)
        assert bool(dequantise_rows(*quantise_rows(row)).isnan().all())
    assert dequantise_rows(whole, scale, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_scores_stay_finite(form: str, dtype: torch.dtype) -> None:
    q, k, v = draw(dtype)
    q, k = q.sign() * 1e2, k.sign() * 1e2
    for scale in (1.0, -1.0):  # scores of up to ±640000, and a margin of 1e4 between neighbours
        out, lse = decode_attention(q, k, v, LENGTHS, scale=scale, return_lse=True, form=form)
        wanted, level = direct(q, k, v, LENGTHS, scale=scale)
        assert out.isfinite().all()
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse.double(), level, rtol=1e-6, atol=0)


def test_nan_inside_is_seen(form: str) -> None:
    q, k, v = draw()
    k[1, 0, 5, 3] = torch.nan
    out = decode_attention(q, k, v, LENGTHS, form=form)
    assert out[1, :3].isnan().all()
    assert out[1, 3:].isfinite().all()


def test_autocast_changes_neither_types_nor_sums(form: str) -> None:
    q, k, v = draw()
    wanted = decode_attention(q, k, v, LENGTHS, return_lse=True, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        found = decode_attention(q, k, v, LENGTHS, return_lse=True, form=form)
        alone = decode_attention(q, k, v, LENGTHS, form=form)
    for one, other in zip((*found, alone), (*wanted, wanted[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)  # and of the same type


def test_a_wide_query_over_a_narrow_cache(form: str) -> None:
    q, k, v = draw()
    k, v = k.bfloat16(), v.bfloat16()
    out = decode_attention(q, k, v, LENGTHS, form=form)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), direct(q, k, v, LENGTHS)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_little_is_left_to_sdpa_where_that_is_fast(dtype: torch.dtype, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    run = kernel.compiled.run
    monkeypatch.setattr(kernel.compiled, "run", lambda *given: ran.append(given) or run(*given))
    q, k, v = draw(dtype)
    attend(DecodePlan.of([100] * len(q), 2), q, k, v)
    assert len(ran) == (dtype != torch.float32)  # of 16 bits it is slow
    attend(DecodePlan.of([100, *([99] * (len(q) - 1))], 2), q, k, v)
    assert len(ran) == 1 + (dtype != torch.float32)


def test_values_of_another_width(form: str) -> None:
    q, k, v = draw(width=96)
    out = decode_attention(q, k, v[..., :64], LENGTHS, form=form)
    torch.testing.assert_close(out.double(), direct(q, k, v[..., :64], LENGTHS)[0], rtol=0, atol=2e-6)


def test_a_plan_serves_many_layers(form: str) -> None:
    plan = DecodePlan.of(LENGTHS, 2, workers=3)
    for seed in range(3):
        q, k, v = draw(seed=seed)
        out, lse = attend(plan, q, k, v, form=form)
        assert lse is None
        torch.testing.assert_close(out.double(), direct(q, k, v, LENGTHS)[0], rtol=0, atol=2e-6)


def test_it_has_gradients() -> None:
    q, k, v = (t.double().requires_grad_() for t in draw(heads=2, kv_heads=1, width=2, columns=3))
    lengths = [1, 3, 0, 2, 3, 2]
    assert torch.autograd.gradcheck(lambda *given: decode_attention(*given, lengths), (q, k, v))
    assert torch.autograd.gradcheck(lambda *given: decode_attention(*given, lengths, return_lse=True)[0], (q, k, v))


def test_an_empty_batch(form: str) -> None:
    q, k, v = (t[:0] for t in draw())
    out, lse = decode_attention(q, k, v, [], return_lse=True, form=form)
    assert out.shape == (0, 6, 64)
    assert lse.shape == (0, 6)


Q, K = torch.zeros(2, 4, 8), torch.zeros(2, 2, 6, 8)
TABLE = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": [7, 1]}, "2 sequences of up to 7 keys do not fit"),
        ({"lengths": [-1, 1]}, "at least 0; received -1"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "expects integers"),
        ({"lengths": [1]}, "plan is of 1 sequences"),
        ({"starts": [0]}, "starts expects one number for each of 2"),
        ({"q": torch.zeros(2, 4, 9)}, r"received \(2, 4, 9\)"),
        ({"q": torch.zeros(2, 4, 2, 8)}, r"received \(2, 4, 2, 8\)"),
        ({"q": torch.zeros(2, 3, 8)}, "must divide the query heads"),
        ({"v_cache": torch.zeros(2, 2, 5, 8)}, r"\(2, 2, 5, 8\)"),
        ({"k_cache": torch.zeros(2, 6, 8)}, "four dimensions"),
        ({"v_cache": K.bfloat16()}, "torch.float32 and torch.bfloat16"),
        ({"q": Q.bfloat16()}, "received torch.bfloat16, torch.float32"),
        ({"q": Q.bfloat16(), "k_cache": K.half(), "v_cache": K.half()}, "torch.bfloat16, torch.float16"),
        ({"q": Q.long(), "k_cache": K.long(), "v_cache": K.long()}, "floating"),
        ({"k_cache": K.to(torch.float8_e4m3fn), "v_cache": K.to(torch.float8_e4m3fn)}, "torch.float32, torch.float8_e4m3fn"),
        ({"schedule": "random"}, "stream-k, fixed-split, one-per-output"),
        ({"workers": 0}, "workers of at least 1"),
        ({"tile": 0}, "tile"),
        ({"layout": "lbhd"}, "layout is one of bhld, blhd"),
        ({"form": "magic"}, "form of auto"),
        ({"page_table": TABLE + 1, "lengths": [12, 7]}, "page 2; the cache has 2 pages of 6"),
        ({"page_table": TABLE - 1, "lengths": [12, 7]}, "sequence 0 has a negative entry"),
        ({"page_table": TABLE, "lengths": [13, 1]}, "too short for 13 keys"),
        ({"page_table": TABLE.float(), "lengths": [1, 1]}, r"integers \[2, N\]"),
        ({"page_table": TABLE[:1], "lengths": [1, 1]}, r"integers \[2, N\]"),
        ({"q": Q.to("meta")}, "one device"),
        ({"k_cache": K.char(), "v_cache": K.char()}, "int8 and torch.int8 with none"),
        ({"scales": (K[..., 0], K[..., 0])}, "received torch.float32 and torch.float32"),
        ({"k_cache": K.char(), "v_cache": K, "scales": (K[..., 0], K[..., 0])}, "int8 and torch.float32"),
        ({"k_cache": K.char(), "v_cache": K.char(), "scales": (K[..., 0], K[:, :, :5, 0])}, r"\(2, 2, 5\) of torch.float32"),
        ({"k_cache": K.char(), "v_cache": K.char(), "scales": (K[..., 0], K[..., 0].double())}, "float64"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"q": Q, "k_cache": K, "v_cache": K, "lengths": [6, 1], **change}
    with pytest.raises(ShapeError, match=words):
        decode_attention(**given)


def test_partial_results_of_other_shapes_are_refused() -> None:
    part = partial(Q, K[:, :, 0], K[:, :, 0], 1.0)
    with pytest.raises(ShapeError, match="one shape"):
        merge_partials([part, Partial(*(t[:1] for t in part))])
    with pytest.raises(ShapeError, match="received"):
        merge_partials([])


def test_a_window_and_sinks_are_two_calls_merged() -> None:
    q, k, v = draw(torch.float64)
    lengths = [300] * len(LENGTHS)
    chosen = [*range(4), *range(250, 300)]
    parts = []
    for start, stop in ((0, 4), (250, 300)):
        out, lse = decode_attention(q, k, v, [stop] * len(lengths), starts=[start] * len(lengths), return_lse=True)
        parts.append(Partial(lse, torch.ones_like(lse), out))
    wanted, level = direct(q, k[:, :, chosen], v[:, :, chosen], [len(chosen)] * len(lengths))
    torch.testing.assert_close(merge_partials(parts).output(), (wanted, level), rtol=0, atol=1e-12)


def test_schedules_share_the_work_as_the_paper_says() -> None:
    for lengths, kv_heads, workers in itertools.product(([5, 700, 0, 64], [1], [4096, 8]), (1, 3), (1, 2, 7, 90)):
        for schedule in SCHEDULES:
            plan = DecodePlan.of(lengths, kv_heads, schedule=schedule, tile=64, workers=workers)
            seen = torch.zeros(len(lengths) * kv_heads, max(lengths), dtype=torch.int64)
            for output, start, stop, _ in plan.segments.tolist():
                assert start < stop
                seen[output, start:stop] += 1
            wanted = torch.arange(max(lengths)) < torch.tensor(lengths).repeat_interleave(kv_heads).unsqueeze(1)
            assert torch.equal(seen, wanted.long())
            slots = plan.segments[:, 3]
            assert sorted(slots[slots >= 0].tolist()) == list(range(int(plan.cuts[:, 2].sum())))
            assert plan.workers == workers
            if schedule == "one-per-output" or workers == 1:
                assert len(plan.cuts) == 0
            if schedule == "stream-k":
                tiles = -(-(plan.segments[:, 2] - plan.segments[:, 1]) // 64)
                loads = [int(tiles[a:b].sum()) for a, b in itertools.pairwise(plan.owners.tolist())]
                assert max(loads) - min(loads) <= 1
                outputs = sum(length > 0 for length in lengths) * kv_heads
                assert len(plan.segments) <= outputs + workers - 1
