"""The score card outside the page: terminal, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json

import pytest
from made_records import HOSTILE, METRICS, failed, full, group_of, run, timing
from rich.console import Console

from instar.report import columns, table


def test_terminal_table_names_every_method_and_column() -> None:
    group = group_of(full())
    out = io.StringIO()
    Console(file=out, width=260, color_system=None).print(table.table(group))
    for row in group.rows:
        assert row.address in out.getvalue()
    assert "missing" in out.getvalue()
    assert "2 failed" in out.getvalue()


def test_a_name_with_markup_is_printed_as_it_is() -> None:
    group = group_of([run("softmax", 0), run("[bold]gla[/nothing]", 0)])
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(table.table(group))
    assert "[bold]gla[/nothing]" in out.getvalue()


def test_no_name_steers_the_terminal() -> None:
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(table.table(group_of([run("softmax", 0), run("a\x1b[2Jb", 0)])))
    assert "\x1b" not in out.getvalue()


def test_few_columns_are_shown_and_all_are_exported() -> None:
    group = group_of(full())
    assert [m.id for m in columns.shown(group)] == [
        "bits_per_byte@T",
        "bits_per_byte@4T",
        "accuracy",
        "parameters",
        "state_bytes@4096",
        "train_tokens_per_second",
        "prefill_seconds@4096",
    ]
    assert {m.id for m in columns.shown(group, everything=True)} == {m.id for m in METRICS}


def test_csv_holds_every_figure_with_its_interval() -> None:
    group = group_of(full())
    rows = list(csv.DictReader(io.StringIO(table.csv(group))))
    assert len(rows) == len(group.rows) * len(METRICS)
    found = next(r for r in rows if (r["method"], r["metric"]) == ("gla", "bits_per_byte@T"))
    cell = next(r for r in group.rows if r.address == "gla").cells["bits_per_byte@T"]
    assert float(found["value"]) == cell.value.value
    assert cell.difference is not None
    assert float(found["distance_low"]) == cell.difference.low
    assert found["verdict"] == "better"
    missing = next(r for r in rows if (r["method"], r["metric"]) == (HOSTILE, "bits_per_byte@T"))
    assert (missing["value"], missing["missing"]) == ("", "all 2 runs failed (diverged)")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum"])
def test_no_name_becomes_a_formula_in_a_spreadsheet(name: str) -> None:
    group = group_of([run("softmax", 0), run(name, 0)])
    names = {row["method"] for row in csv.DictReader(io.StringIO(table.csv(group)))}
    assert names == {"softmax", f"'{name}"}


def test_json_is_what_csv_is() -> None:
    group = group_of(full())
    found = json.loads(table.as_json(group))
    assert found["problem"] == "prose"
    assert len(found["figures"]) == len(group.rows) * len(METRICS)


def test_markdown_is_one_table_whatever_the_names() -> None:
    text = table.markdown(group_of([run("softmax", 0), run("a|b\n<img src=x>", 0), failed("gla", 0, "x | y")]))
    lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 5
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "\\<img" in text


def test_latex_escapes_what_latex_reads() -> None:
    text = table.latex(group_of([run("softmax", 0), run("a_b&c%#$\\x{y}", 0)]))
    assert r"a\_b\&c\%\#\$\textbackslash{}x\{y\}" in text
    rows = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(rows) == 2
    columns_ = text.split("{l")[1].split("}")[0].count("r") + 1
    assert all(row.replace(r"\&", "").count("&") == columns_ - 1 for row in rows)


def test_reasons_for_missing_figures() -> None:
    group = group_of([run("softmax", 0), run("gla", 0)])
    prefill = group.card.metric("prefill_seconds@256")
    assert columns.text(group, group.rows[1], prefill).reason == "no timing pass among the records"
    timed = group_of([run("softmax", 0), run("gla", 0), timing(["softmax", "gla"])])
    assert columns.text(timed, timed.rows[1], prefill).value.endswith("ms")
    assert columns.text(timed, timed.rows[1], prefill).verdict in ("better", "worse", "undecided", "equal within the margin")
