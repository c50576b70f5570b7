"""The drawings: their data, their labels, and what the page's colours and identifiers need."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import HOSTILE, full, group_of, run, trials

from instar.report import figures, labels, plots, tuning
from instar.report.plots import Plot, Styles


@pytest.fixture(scope="module")
def drawn(module_shelf: None) -> dict[str, Plot]:
    group = group_of(full())
    styles = Styles.of([row.address for row in group.rows])
    found = [p for section in figures.all_plots(group, styles, "c1").values() for p in section]
    best = tuning.plot(group, styles, "c1")
    assert best is not None
    return {p.name.removeprefix("c1-"): p for p in [*found, best]}


def test_all_drawings_are_there(drawn: dict[str, Plot]) -> None:
    assert set(drawn) == {
        "tradeoff-time",
        "tradeoff-memory",
        "state_bytes",
        "prefill_seconds",
        "learning",
        "paired",
        "bits_per_byte",
        "tuning",
    }


def test_every_file_is_what_it_says(drawn: dict[str, Plot]) -> None:
    for plot in drawn.values():
        assert plot.png.startswith(b"\x89PNG")
        assert ET.fromstring(plot.svg).tag.endswith("svg")
        assert len(plot.csv.splitlines()) > 1


def test_text_is_text_and_names_are_not_mathematics(drawn: dict[str, Plot]) -> None:
    texts = ["".join(e.itertext()) for e in ET.fromstring(drawn["prefill_seconds"].inline).iter() if e.tag.endswith("text")]
    assert plots.label(HOSTILE, 16) in texts
    assert "softmax" in texts


def test_colours_follow_the_page(drawn: dict[str, Plot]) -> None:
    for plot in drawn.values():
        root = ET.fromstring(plot.inline)
        assert re.search(r"var\(--s\d\)", plot.inline)
        assert "var(--muted)" in plot.inline
        styles = " ".join(e.get("style", "") for e in root.iter())
        assert not re.search(r"#[0-9a-f]{6}", styles)
        assert not any(e.tag.endswith(("metadata", "style", "script")) for e in root.iter())


def test_identifiers_belong_to_the_drawing(drawn: dict[str, Plot]) -> None:
    seen: set[str] = set()
    for name, plot in drawn.items():
        root = ET.fromstring(plot.inline)
        own = [e.get("id", "") for e in root.iter() if e.get("id")]
        assert all(i.startswith(f"c1-{name}-") for i in own)
        assert len(set(own)) == len(own)
        assert not seen & set(own)
        seen |= set(own)
        for e in root.iter():
            for key, value in e.attrib.items():
                if key.endswith("href"):
                    assert value[1:] in own
                for target in re.findall(r"url\(#([^)]*)\)", value):
                    assert target in own


def test_one_colour_and_marker_a_method() -> None:
    styles = Styles.of([f"m{i}" for i in range(8)] + ["m0"])
    assert len({(styles.colour(f"m{i}"), styles.marker(f"m{i}")) for i in range(8)}) == 8
    many = Styles.of([str(i) for i in range(56)])
    assert len({(many.colour(str(i)), many.marker(str(i))) for i in range(56)}) == 56


def test_control_characters_cannot_break_an_svg() -> None:
    group = group_of([run("softmax", s) for s in range(3)] + [run("a\x00\x1b]\u202eb", s) for s in range(3)])
    plot = figures.paired(group, Styles.of([r.address for r in group.rows]), "c1")
    assert plot is not None
    ET.fromstring(plot.inline)


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_drawn_without_complaint() -> None:
    group = group_of([run(a, s) for a in ("softmax", "注意力", "$x^2$") for s in range(3)])
    plot = figures.paired(group, Styles.of([r.address for r in group.rows]), "c1")
    assert plot is not None
    assert "注意力" in plot.inline
    assert "$x^2$" in plot.inline  # a name, not mathematics


def test_frontier_is_what_nothing_beats() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 3.0), (2.0, 2.5)]
    assert figures.frontier(points, "lower", "lower") == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert figures.frontier(points, "higher", "higher") == [(3.0, 3.0)]


@given(st.lists(st.floats(0, 1000), max_size=12), st.floats(1, 50))
def test_spread_labels_keep_their_order_and_distance(heights: list[float], gap: float) -> None:
    heights = sorted(heights)
    found = labels.spread(heights, gap)
    assert len(found) == len(heights)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(found))
    if all(b - a >= gap for a, b in itertools.pairwise(heights)):
        assert found == pytest.approx(heights)


def test_a_comparison_without_quality_or_times_has_no_drawing_of_them() -> None:
    group = group_of([run("softmax", 0), run("gla", 0)])
    found = figures.all_plots(group, Styles.of([r.address for r in group.rows]), "c1")
    assert [p.name for p in found["tradeoff"]] == ["c1-tradeoff-memory"]


def test_best_of_k_is_the_mean_for_one_trial_and_nears_the_best() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    found = tuning.best_of(values, "lower")
    assert found[0] == pytest.approx(2.75)
    assert all(b < a for a, b in itertools.pairwise(found))
    assert min(values) < found[-1]
    assert tuning.best_of(values, "higher")[-1] == pytest.approx(-tuning.best_of([-v for v in values], "lower")[-1])


def test_a_choice_at_the_edge_of_its_range_is_marked() -> None:
    group = group_of([run(a, s) for a in ("softmax", "gla") for s in range(3)] + trials("gla"))
    (found,) = tuning.tuned(group)
    assert (found.address, found.trials, found.chosen) == ("gla", 6, "trial 2")
    assert [(c.name, c.edge) for c in found.choices] == [("prose.rate", True)]
