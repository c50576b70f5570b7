"""Claims of a ratio of scores ("a fifth better"): the interval by seeds and items, and the verdict that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar import catalogue
from instar.bench import claims, statistics
from instar.bench.record import Store
from instar.cards import Claim
from instar.items import Items


def scores(ratio: float, seeds: int = 5, items: int = 30, seed: int = 0) -> tuple[list[Items], list[Items]]:
    """Errors item by item, `ratio` apart in expectation, with chance of seeds and of items."""
    draw = np.random.default_rng(seed)
    base = draw.lognormal(0, 0.3, items)
    found: tuple[list[Items], list[Items]] = ([], [])
    for _ in range(seeds):
        for side, factor in zip(found, (ratio, 1.0), strict=True):
            values = factor * np.exp(draw.normal(0, 0.01)) * base * np.exp(draw.normal(0, 0.1, items))
            side.append(Items(values.tolist(), [1.0] * items))
    return found


def judged(root: Path, a: list[Items], b: list[Items], **changed: Any) -> claims.Judgement:
    claim = Claim(
        **{
            "id": "planted",
            "text": "t",
            "source": "s",
            "kind": "ratio",
            "measure": "text.bits_per_byte",
            "against": "softmax",
            "margin": 1.15,
            **changed,
        }
    )
    store = Store(root / claims.folder_name(claim))
    for address, runs in (("gla", a), ("softmax", b)):
        for seed, run in enumerate(runs):
            entry = {"value": run.value, "totals": list(run.totals), "weights": list(run.weights)}
            told: dict[str, Any] = {"schema": 1, "id": f"{address}-{seed}", "kind": "run", "status": "ok", "reason": None}
            told |= {
                "spec": {"problem": {"slug": "text", "settings": {}}, "seed": seed},
                "address": address,
                "metrics": {"bits_per_byte@T": entry},
                "costs": {},
            }
            store.put(told)
    return claims.judge(catalogue.method("gla"), claim, root)


def test_scale_multiplies_the_ratio_and_its_ends_and_exchanging_sides_inverts_them() -> None:
    a, b = scores(1.2)
    found, back = statistics.ratio_of_scores(a, b), statistics.ratio_of_scores(b, a)
    assert found.interval is not None
    assert back.interval is not None
    assert found.value * back.value == pytest.approx(1)
    assert (found.interval[0] * back.interval[1], found.interval[1] * back.interval[0]) == pytest.approx((1, 1))
    tripled = [Items([3 * x for x in run.totals], run.weights) for run in a]
    large = statistics.ratio_of_scores(tripled, b)
    assert large.interval is not None
    assert (large.value, *large.interval) == pytest.approx((3 * found.value, *(3 * end for end in found.interval)))


def test_one_item_gives_the_interval_of_the_seeds_logarithms_alone() -> None:
    a, b = scores(1.2, items=1)
    expected = statistics.ratio([run.value for run in a], [run.value for run in b])
    found = statistics.ratio_of_scores(a, b)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_weights_are_those_of_the_metric() -> None:
    runs = [Items([2.0 * w for w in weights], weights) for weights in ([1.0, 5.0, 2.0], [3.0, 3.0, 1.0], [1.0, 1.0, 9.0])]
    against = [Items([1.0 * w for w in run.weights], run.weights) for run in runs]
    found = statistics.ratio_of_scores(runs, against)  # every item has the same ratio, so that nothing is left to chance
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_the_interval_covers_what_was_planted() -> None:
    covered = 0
    for seed in range(150):
        interval = statistics.ratio_of_scores(*scores(1.2, items=20, seed=seed)).interval
        assert interval is not None
        covered += interval[0] <= 1.2 <= interval[1]
    assert covered >= 0.9 * 150


@pytest.mark.parametrize(("ratio", "verdict"), [(0.7, "holds"), (1.0, "does not hold here"), (1 / 1.15, "undecided")])
def test_an_error_that_is_a_share_lower(tmp_path: Path, ratio: float, verdict: str) -> None:
    found = judged(tmp_path, *scores(ratio))
    assert (found.verdict, found.seeds, found.drawn_from) == (verdict, 5, "seeds")
    assert found.value == pytest.approx(1 / ratio, rel=0.05)  # better over worse


def test_a_score_that_is_a_share_higher(tmp_path: Path) -> None:
    assert judged(tmp_path, *scores(1.4), direction="higher").verdict == "holds"


def test_few_seeds_and_scores_of_zero_are_undecided(tmp_path: Path) -> None:
    assert judged(tmp_path / "few", *scores(0.5, seeds=2)).verdict == "undecided"
    a, b = scores(0.5)
    a[2] = Items([0.0] * 30, [1.0] * 30)
    found = judged(tmp_path / "zero", a, b)
    assert (found.verdict, found.value) == ("undecided", None)
    assert "above 0" in str(found.reason)
