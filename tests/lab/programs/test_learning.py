"""What learners learn, and how they choose among their beginnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instar.checks.labeller import world
from instar.checks.program import executed
from instar.cli.app import app
from instar.errors import DataError, OutputError, ShapeError
from instar.interfaces import Examples
from instar.lab.programs import TransformerPrograms, generate, python
from instar.lab.programs.training import accuracy
from instar.lab.programs.unigram import Unigram
from instar.lab.programs.vocabulary import Vocabulary


def test_a_small_task_is_learnt_and_the_file_knows_it() -> None:
    train, valid, test = generate("hist", vocab=5, length=6, samples=800)
    learner = TransformerPrograms(layers=1)
    learner.fit(train, valid, steps=400, batch=64)
    run = executed(python(learner.program()))
    said = [run(row) for row in test.tokens]
    assert said == learner.predict(test.tokens)
    assert accuracy(said, test) > 0.9


def test_the_best_beginning_of_validation_is_kept() -> None:
    learner = TransformerPrograms(layers=1, restarts=3)
    learner.fit(world(), world(), steps=6, batch=8)
    assert len({one.seed for one in learner.tries}) == 3
    best = max(one.accuracy for one in learner.tries)
    assert accuracy(learner.predict(world().tokens), world()) == best


def test_new_and_rare_tokens() -> None:
    rows = [["<s>", "a", "b"], ["<s>", "b", "a"], ["<s>", "once"]]
    examples = Examples(rows, [[None, *("x" if t == "a" else "y" for t in row[1:])] for row in rows])
    strict = Vocabulary.of(examples, examples)
    with pytest.raises(DataError, match=r"'zebra'.*rare=1"):
        strict.ids([["<s>", "zebra"]])
    rare = Vocabulary.of(examples, examples, rare=1)
    assert rare.tokens == ("<s>", "a", "b", "<unk>")
    ids, mask = rare.ids([["<s>", "zebra"], ["<s>", "once", "a"]])
    assert ids.tolist() == [[0, 3, 0], [0, 3, 1]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    with pytest.raises(DataError, match="labels that training has not"):
        Vocabulary.of(examples, Examples([["a"]], [["z"]]))


def test_too_small_k_is_refused_before_training() -> None:
    with pytest.raises(ShapeError, match="give k of 4 or more"):
        TransformerPrograms(k=3).fit(world(), world(), steps=3, batch=8)


def test_unigram_counts() -> None:
    rows = [["a", "b"], ["a", "b"], ["a", "c"]]
    learner = Unigram()
    learner.fit(Examples(rows, [["x", "y"], ["x", "y"], ["y", None]]), Examples(rows, [["x", "y"]] * 3), steps=1, batch=1)
    assert learner.predict([["b", "a", "c"][:2], ["c"]]) == [["y", "x"], ["y"]]


def test_the_command_writes_a_checked_file(tmp_path: Path) -> None:
    out = tmp_path / "hist.py"
    command = ["program", "hist", "--vocab", "4", "--length", "6", "--samples", "60", "--steps", "12", "--restarts", "2"]
    ends = ["--batch", "16", "--knob", "layers=1", "-o", str(out)]
    done = CliRunner().invoke(app, [*command, *ends, "--json", "--tables", str(tmp_path / "t"), "--keep", str(tmp_path / "k")])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["different"] == 0
    assert said["checked"] > 10_000
    assert len(said["validation"]) == 2
    assert said["seconds"]["conversion"] < 5
    assert (tmp_path / "t" / "weights.csv").exists()
    text = out.read_text()
    assert executed(text)(["<s>", "0", "1"])
    shown = ["--prune", "0", "--keep", str(tmp_path / "k"), "--explain", "<s> 0 1", "--page", str(tmp_path / "page.html")]
    again = CliRunner().invoke(app, [*command, *ends, *shown])
    assert again.exit_code == 0, again.output
    assert "Pruned:" in again.output
    assert "2: '1'" in again.output
    html = (tmp_path / "page.html").read_text()
    assert "def run(tokens" in html
    assert "By length" in html
    taken = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "new.py"), "--page", str(tmp_path / "t")])
    assert isinstance(taken.exception, OutputError)
    assert not (tmp_path / "new.py").exists()  # refused before the work
    wrong = CliRunner().invoke(app, [*command, *ends, "--knob", "k=3"])
    assert isinstance(wrong.exception, ShapeError)
