"""Named data: hostile listings refused, no network a clear error, nothing trusted without its hash."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instar.data import datasets
from instar.errors import DataError, MissingExtraError

CONTENT = b"some text\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("INSTAR_DATA", raising=False)
    return tmp_path


def listing(folder: Path, path: str = "sets/a.txt", url: str = "https://localhost:1/a.txt", sha256: str = "") -> Path:
    file = folder / "listing.toml"
    sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
    file.write_text(f'[a]\ntitle = "A"\n[[a.files]]\npath = "{path}"\nurl = "{url}"\nsha256 = "{sha256}"\n')
    return file


@pytest.mark.parametrize(
    "bad",
    [{"path": "/etc/passwd"}, {"path": "../a.txt"}, {"path": "x/../../a"}, {"url": "file:///etc/passwd"}, {"sha256": "abc"}],
)
def test_a_hostile_listing_is_refused(home: Path, bad: dict[str, str]) -> None:
    with pytest.raises(DataError, match="lists"):
        datasets.locate("a", listing(home, **bad))


def test_the_copy_under_instar_data_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTAR_DATA", str(home / "data"))
    path = home / "data" / "sets" / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert datasets.locate("a", listing(home)) == [path]
    path.write_bytes(CONTENT + b"changed")
    with pytest.raises(DataError, match="expected"):
        datasets.locate("a", listing(home))


def test_a_git_blob_pins_a_file_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`printf 'some text\n' | git hash-object --stdin`"""
    blob = "7b57bd29ea8afbdeb9bac64cf7074f4b531492a8"
    file = listing(home)
    file.write_text(file.read_text().replace("sha256", "git_blob").replace(hashlib.sha256(CONTENT).hexdigest(), blob))
    monkeypatch.setenv("INSTAR_DATA", str(home / "data"))
    path = home / "data" / "sets" / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert datasets.locate("a", file) == [path]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"expected {blob}"):
        datasets.locate("a", file)
    path.unlink()
    wrong = home / "fetched.txt"
    wrong.write_bytes(b"another page")
    monkeypatch.setitem(sys.modules, "pooch", SimpleNamespace(retrieve=lambda *_, **__: str(wrong)))
    with pytest.raises(DataError, match="not the pinned file"):
        datasets.locate("a", file)


def test_without_pooch_the_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"instar\[data\]") as caught:
        datasets.locate("a", listing(home))
    assert "INSTAR_DATA" in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("hash does not match")])
def test_what_cannot_be_fetched_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def retrieve(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "pooch", SimpleNamespace(retrieve=retrieve))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="INSTAR_DATA") as caught:
        datasets.locate("a", listing(home))
    assert "https://localhost:1/a.txt" in str(caught.value)
