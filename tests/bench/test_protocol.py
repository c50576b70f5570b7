"""The survey's protocol: every analysis holds the plain baselines, wraps what can be wrapped, and says what failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from instar.bench import protocol
from instar.bench.statistics import Estimate, exact
from instar.cli.app import app
from instar.errors import PlanError

SMALL = {"horizon": 6, "context": 24}


def test_every_comparison_has_the_plain_methods_and_differs_by_what_is_asked() -> None:
    question = protocol.Question(("transformer", "patchtst", "repeat_last"), SMALL, look_backs=(24, 48), depths=(1, 3))
    for analysis in protocol.ANALYSES:
        found = list(protocol.steps(analysis, question))
        assert all(set(protocol.PLAIN) <= set(step.request.methods) for step in found)
        assert all(step.request.settings["horizon"] == 6 for step in found)
    assert [step.request.settings["context"] for step in protocol.steps("look_back", question)] == [24, 48]
    depths = list(protocol.steps("depth", question))
    assert [step.request.overrides["transformer"] for step in depths] == [{"depth": 1}, {"depth": 3}]
    wrapped = list(protocol.steps("decomposition", question))[1:]
    assert [(s.column, s.request.overrides["decomposed"]["method"]) for s in wrapped] == [
        ("trend apart", "transformer"),
        ("trend apart", "patchtst"),
        ("normalised", "transformer"),
        ("normalised", "patchtst"),
    ]


def test_it_runs_and_says_what_it_found(tmp_path: Path) -> None:
    question = protocol.Question(("repeat_last",), SMALL, look_backs=(24,), budget="5steps", seeds=1)
    (table,) = protocol.run(question, tmp_path, analyses=["look_back"], jobs=1)
    assert table.columns == ["24"]
    assert set(table.rows) == {"rlinear", *protocol.PLAIN}
    assert all(isinstance(cells["24"], Estimate) for cells in table.rows.values())
    text = protocol.markdown([table])
    assert "Does a longer look-back help?" in text
    assert "| repeat_last | " in text


def test_what_changes_over_the_columns_is_said_beside_the_best_plain_method() -> None:
    rows = {name: {"1": exact(mse)} for name, mse in (("rlinear", 0.4), ("repeat_last", 0.9))}
    table = protocol.Table("depth", "t", ["1", "2"], {**rows, "transformer": {"1": exact(0.8), "2": exact(0.6)}})
    assert protocol.sentences(table) == [
        "- transformer: from 0.8 (1) to 0.6 at best (2), 25 % less; the best plain method has 0.4."
    ]


def test_a_failure_is_shown_in_its_place() -> None:
    table = protocol.Table("depth", "t", ["1"], {"transformer": {"1": "DivergedError: The loss is nan"}})
    assert "| transformer | DivergedError: The loss is nan |" in protocol.markdown([table])


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no analysis breadth"):
        protocol.run(protocol.Question(("nlinear",)), tmp_path, analyses=["breadth"])
    with pytest.raises(PlanError, match="softmax is a Mixer"):
        protocol.run(protocol.Question(("softmax",)), tmp_path)
    for words in (["--look-backs", "0"], ["--set", "itransformer.width=8"]):
        assert CliRunner().invoke(app, ["protocol", *words]).exit_code != 0
