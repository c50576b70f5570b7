"""The simulated workers: closed forms, bounds, and the order of the schedules."""

from __future__ import annotations

from math import ceil

import pytest

from instar.errors import ShapeError
from instar.kernels.decode_attention_schedule import SCHEDULES, splits
from instar.kernels.lean_attention import curve, makespan, occupancy

WORKERS = range(1, 129)


@pytest.mark.parametrize(("outputs", "n"), [(1, 1000), (48, 64), (56, 256), (130, 3)])
def test_equal_outputs_have_closed_forms(outputs: int, n: int) -> None:
    tiles = [n] * outputs
    total = n * outputs
    for P, single, even, cut in zip(
        WORKERS, *(curve(s, tiles) for s in ("one-per-output", "stream-k", "fixed-split")), strict=True
    ):
        assert single == pytest.approx(outputs / (P * ceil(outputs / P)))
        assert even == pytest.approx(total / (P * ceil(total / P)))
        assert cut <= 1 + 1e-12
        assert even >= max(single, cut) - 1e-12  # no schedule of whole tiles is shorter


def test_the_gain_over_one_per_output_is_what_the_paper_draws() -> None:
    long = [4096]  # one long context and one key head: a single worker is busy under one-per-output
    assert makespan("one-per-output", long, 108) == 108 * makespan("stream-k", [4096 // 108 * 108], 108) + 4096 % 108
    assert occupancy("stream-k", long, 108) > 0.99
    almost = [64] * 109  # a second, almost empty wave
    assert occupancy("one-per-output", almost, 108) == pytest.approx(109 / 216)
    assert occupancy("stream-k", almost, 108) > 0.99


def test_ragged_batches_and_overhead() -> None:
    tiles = [128, *[2] * 15]
    assert makespan("stream-k", tiles, 2) == 79
    assert makespan("one-per-output", tiles, 2) == 128
    for schedule in SCHEDULES:
        for P in (1, 2, 7, 128):
            assert makespan(schedule, tiles, P) >= max(ceil(sum(tiles) / P), 1)
            assert makespan(schedule, tiles, P, overhead=0.5) > makespan(schedule, tiles, P)
        assert makespan(schedule, [], 3) == 0
        assert occupancy(schedule, [0, 0], 3) == 1
    assert makespan("stream-k", tiles, 1, overhead=0.5) == sum(tiles) + 0.5 * 16


def test_the_fixed_split_fills_waves_and_never_exceeds_what_is_there() -> None:
    assert splits([64] * 128, 128) == 1
    assert splits([1000], 100) >= 85
    assert splits([3], 100) == 3
    assert splits([], 4) == 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match="at least 0; received -1"):
        makespan("stream-k", [1], 1, overhead=-1)
    with pytest.raises(ShapeError, match="counts of at least 0"):
        makespan("stream-k", [-1], 1)
    with pytest.raises(ShapeError, match="a worker"):
        makespan("stream-k", [1], 0)
    with pytest.raises(ShapeError, match="must be one of"):
        makespan("random", [1], 1)  # type: ignore[arg-type]
