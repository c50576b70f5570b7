"""The compiled library: built by command alone, taken only when it is what was built."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from instar.cli.app import app
from instar.errors import BuildError
from instar.kernels import native
from instar.kernels.decode_attention import WORTH_A_HINT, decode_attention


@pytest.fixture
def own(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built library in a cache of this test's own: its folder."""
    shutil.copytree(built, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._open.cache_clear()
    return native.folder()


def compute() -> torch.Tensor:
    q, k = torch.ones(1, 2, 32), torch.ones(1, 1, WORTH_A_HINT, 32)
    return decode_attention(q, k, k, [WORTH_A_HINT])


def listed() -> str:
    return CliRunner().invoke(app, ["kernels"]).output


def test_it_is_used_once_it_is_there(own: Path) -> None:
    assert "ready" in listed()
    q, k = torch.randn(2, 2, 32), torch.randn(2, 1, 40, 32)
    found = decode_attention(q, k, k, [40, 30])
    assert torch.equal(found, decode_attention(q, k, k, [40, 30], form="compiled"))


def test_one_that_is_built_meanwhile_is_taken(own: Path) -> None:
    shutil.move(own, own.with_name("elsewhere"))
    assert native.library() is None
    shutil.move(own.with_name("elsewhere"), own)  # another process has built it, badly
    manifest = own / native.MANIFEST
    said = manifest.read_text()
    manifest.write_text("{}")
    assert native.library() is None
    manifest.write_text(said)
    os.utime(manifest, (0, 0))  # and anew
    assert native.library() is not None


def test_absence_costs_a_hint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.hint.cache_clear()
    with caplog.at_level(logging.WARNING, "instar"):
        torch.testing.assert_close(compute(), torch.ones(1, 2, 32))
        compute()
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "instar kernels build" in caplog.text
    assert "absent" in listed()
    assert list(tmp_path.iterdir()) == []  # nothing is built by use
    with pytest.raises(BuildError, match="instar kernels build"):
        decode_attention(torch.ones(1, 1, 32), *torch.ones(2, 1, 1, 4, 32), [4], form="compiled")


@pytest.mark.parametrize("how", ["truncated", "another", "writable", "linked", "manifest", "missing"])
def test_what_is_not_what_was_built_is_refused(own: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    path = next(own.glob("*.so"))
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "another":
        path.write_bytes(path.read_bytes() + b"\0")
    elif how == "writable":
        path.chmod(0o666)
    elif how == "linked":
        path.rename(own / "else.so")
        path.symlink_to(own / "else.so")
    elif how == "manifest":
        (own / native.MANIFEST).write_text("{}")
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, "instar"):
        torch.testing.assert_close(compute(), torch.ones(1, 2, 32))
    assert "is not used" in caplog.text
    assert "refused" in listed()


def test_a_library_that_is_none_is_refused_with_its_reason(own: Path) -> None:
    import hashlib

    path = next(own.glob("*.so"))
    path.write_bytes(b"not a library")
    facts = json.loads((own / native.MANIFEST).read_text())
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (own / native.MANIFEST).write_text(json.dumps(facts))
    assert native.library() is None
    assert "cannot be loaded" in listed()


def test_another_torch_build_finds_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native._key.cache_clear()
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    try:
        assert native.folder() != own
        assert "absent" in listed()
        assert "1 of other machines" in listed()
    finally:
        native._key.cache_clear()


def test_a_compiler_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no-such-compiler"):
        native.build()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildError, match=r"failed \(1\)"):
        native.build()
    monkeypatch.setenv("CXX", "true")  # says it worked, and made nothing
    with pytest.raises(BuildError, match="does not work"):
        native.build()
    assert not list(tmp_path.rglob("*.so"))
