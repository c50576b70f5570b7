"""The command says what stands in its way, and takes nothing's place but a site's."""

from __future__ import annotations

from pathlib import Path

import pytest

from instar import extras
from instar.errors import MissingExtraError
from instar.site.__main__ import main


def test_it_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["site"]) == 3
    assert "has no folder docs/" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_site_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.md").write_text("years", "utf-8")
    (tmp_path / "file").write_text("text", "utf-8")
    for name in ("mine", "file"):
        assert main([name]) == 3
        assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.md").read_text("utf-8") == "years"


def test_usage_and_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage" in capsys.readouterr().err

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    assert main(["anywhere"]) == MissingExtraError.exit_code
    assert "instar[docs]" in capsys.readouterr().err
