"""Settings as text from a command line and as values from Python: the same rules for every door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instar.doors import local, openai
from instar.doors.decoder import DecoderModel
from instar.doors.hf import Live, TransformersModel
from instar.doors.openai import Endpoint
from instar.doors.receipts import RecordedModel
from instar.doors.settings import meanings, read
from instar.errors import ShapeError, UnknownNameError

LOCAL: dict[str, tuple[str, Any]] = {
    "dtype": ("bfloat16", "bfloat16"),
    "quantize": ("int8", "int8"),
    "layers": ("2", 2),
    "device": ("cuda:1", "cuda:1"),
    "threads": ("none", None),
    "seed": ("0", 0),
    "timeout": ("1.5", 1.5),
    "batch": ("1", 1),
    "max_length": ("12", 12),
    "prompt": ("Q: {input}", "Q: {input}"),
    "max_new_tokens": ("8", 8),
    "stop": ('["\\\\n", "END"]', ("\n", "END")),
    "normalize": ("true", "characters"),
    "chat": ("True", True),
    "document_prompt": ("D: {input}", "D: {input}"),
    "k": ("7", 7),
}
ENDPOINT: dict[str, tuple[str, Any]] = {
    **{name: LOCAL[name] for name in ("prompt", "document_prompt", "k", "batch", "stop", "seed", "timeout")},
    "model": ("org/m", "org/m"),
    "api": ("completions", "completions"),
    "system": ("Be brief", "Be brief"),
    "max_tokens": ("7", 7),
    "temperature": ("none", None),
    "body": ('{"top_p": 0.5}', {"top_p": 0.5}),
    "retries": ("0", 0),
    "concurrency": ("2", 2),
    "key_env": ("MY_KEY", "MY_KEY"),
}


@pytest.mark.parametrize(("kind", "table"), [(local.Settings, LOCAL), (openai.Settings, ENDPOINT)])
def test_every_setting_is_read_from_text_and_from_its_value(kind: Any, table: dict[str, tuple[str, Any]]) -> None:
    assert set(table) == set(meanings(kind)), "a setting without a case here"
    found = read(kind, {name: text for name, (text, _) in table.items()})
    again = read(kind, {name: value for name, (_, value) in table.items()})
    assert found == again
    for name, (_, value) in table.items():
        assert getattr(found, name) == value
        assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize("kind", [local.Settings, openai.Settings])
@pytest.mark.parametrize("value", ["", "x", "-1", "nan", "1e999", True, [], {}, object()])
def test_numbers_refuse_what_is_none(kind: Any, value: Any) -> None:
    names = {"batch", "k", "timeout", "layers", "threads", "max_length", "max_new_tokens", "max_tokens", "retries", "concurrency"}
    for name in names & set(meanings(kind)) - ({"timeout"} if value == "1e999" else set()):
        with pytest.raises(ShapeError, match=f"The setting {name} expects a .*number"):
            read(kind, {name: value})


@pytest.mark.parametrize("kind", [local.Settings, openai.Settings])
def test_texts_and_files(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("Näher: {input}", "utf-8")
    for name in ("prompt", "document_prompt"):
        assert getattr(read(kind, {name: "@~/p.txt"}), name) == "Näher: {input}"
    assert read(kind, {"stop": "[END]"}).stop == ("[END]",), "a text that only looks like a list"
    assert read(kind, {"stop": ["a", "\\n"]}).stop == ("a", "\n")
    (tmp_path / "large").write_bytes(b"{input}" * 2**18)
    (tmp_path / "binary").write_bytes(b"{input}\xff")
    for wrong in ("no place", "@~/large", "@~/binary", "@~/none", f"@{tmp_path}", 3):
        with pytest.raises(ShapeError, match="The setting prompt expects"):
            read(kind, {"prompt": wrong})
    for wrong in ("", "[1]", [""], 5, '["a", ""]'):
        with pytest.raises(ShapeError, match="none empty"):
            read(kind, {"stop": wrong})


@pytest.mark.parametrize(
    ("door", "name", "near"),
    [
        (TransformersModel, "max_tokens", "max_new_tokens"),
        (RecordedModel, "normalise", "normalize"),
        (DecoderModel, "batchsize", "batch"),
        (Live, "max_len", "max_length"),
        (Endpoint, "max_new_tokens", "max_tokens"),
        (Endpoint, "document", "document_prompt"),
    ],
)
def test_unknown_names_are_told_the_nearest(door: Any, name: str, near: str) -> None:
    given = ("http://127.0.0.1:1",) if door is Endpoint else (None, None, "live") if door is Live else ("nowhere",)
    with pytest.raises(UnknownNameError, match=near):
        door(*given, {name: "1"})
