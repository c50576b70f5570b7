"""`instar find` and `instar catalogue`: answers, exit codes, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instar.cli.app import app


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_find_answers_in_words_and_for_programs() -> None:
    code, text = run("find", "stream audio on a small device")
    assert code == 0
    assert text.splitlines()[0].split()[0] == "lmuformer"
    code, text = run("find", "grow", "a", "trained", "model", "--json", "--most", "2")
    answer = json.loads(text)
    assert code == 0
    assert answer["need"] == "grow a trained model"
    assert answer["answered"]
    assert answer["answers"][0]["id"] == "tokenformer"
    assert len(answer["answers"]) == 2


def test_a_need_that_nothing_meets_is_said_and_is_exit_code_1() -> None:
    code, text = run("find", "which restaurants are open tonight")
    assert code == 1
    assert "Nothing here answers" in text
    code, text = run("find", "xyzzy")
    assert code == 1
    assert "Try other words" in text
    code, text = run("find", "xyzzy", "--json")
    assert code == 1
    assert json.loads(text) == {"need": "xyzzy", "answered": False, "answers": []}


@pytest.mark.parametrize("words", [["find", ""], ["find", "of the"], ["find", "…"], ["find", "x", "--most", "0"], ["find"],
                                   ["catalogue"], ["catalogue", "-o", "p.html", "--results", "nowhere"]])  # fmt: skip
def test_what_says_nothing_is_wrong_usage(words: list[str]) -> None:
    assert run(*words)[0] == 2


def test_finding_needs_no_torch() -> None:
    code = "import sys; from instar.cli.app import app; app(['find', 'edit facts'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy'"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "heavy" not in done.stderr, done.stderr
    assert "pmet" in done.stdout


def test_page_and_feed_are_written(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page, feed = tmp_path / "new" / "page.html", tmp_path / "feed.xml"
    code, text = run("catalogue", "-o", str(page), "--feed", str(feed), "--results", str(tmp_path / "results"))
    assert code == 0, text
    assert text.split() == [str(page), str(feed)]
    assert "47 papers" in page.read_text("utf-8")
    assert feed.read_text("utf-8").startswith("<?xml")
