"""Heads in folders: round trips, writers and readers at once, and every way in which a folder can lie."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes

from instar.compat import pairs as pairing
from instar.compat import saved
from instar.compat.low_rank_affine import LowRankAffine
from instar.compat.procrustes import Procrustes
from instar.compat.residual_mlp import ResidualMLP
from instar.compat.ridge import Ridge
from instar.errors import CheckpointError, GenerationError, OutputError, ShapeError, UnknownNameError
from instar.interfaces import CompatibleHead, Generation
from instar.retrieval.fusion import Calibration

OLD, NEW = Generation(0, "a" * 64, 8, "old encoder"), Generation(1, "b" * 64, 12, "new encoder")


def fitted(
    kind: type[CompatibleHead] = Ridge, new_dim: int = 12, old_dim: int = 8, seed: int = 0, **knobs: Any
) -> CompatibleHead:
    draw = torch.Generator().manual_seed(seed)
    head = kind(new_dim, old_dim, **knobs)
    head.fit(pairing.of(torch.randn(40, old_dim, generator=draw), torch.randn(40, new_dim, generator=draw)), steps=5)
    return head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved.save(fitted(), tmp_path / "head", generations=[OLD, NEW], facts={"items": 40})
    return tmp_path / "head"


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / saved.HEAD).read_text("utf-8"))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    head = fitted(Procrustes, scale="diagonal", centre=False).to(dtype)
    scores = {n: np.random.default_rng(n).normal(size=500).astype(np.float32) for n in (0, 1)}
    calibration = Calibration.fit(scores)
    saved.save(head, tmp_path, generations=[OLD, NEW], facts={"é": [1, None]}, calibration=calibration)
    found = saved.load(tmp_path)
    assert isinstance(found.head, Procrustes)
    assert (found.head.scale, found.head.centre, found.head.training) == ("diagonal", False, False)
    assert found.generations == [OLD, NEW]
    assert found.facts == {"é": [1, None]}
    assert found.calibration is not None
    assert np.array_equal(found.calibration(1, scores[1]), calibration(1, scores[1]))
    x = torch.randn(5, 12, dtype=dtype)
    assert torch.equal(found.head.project(x, 0), head.project(x, 0))


def test_loading_draws_no_random_numbers_and_the_head_can_be_fitted_again(tmp_path: Path) -> None:
    saved.save(fitted(ResidualMLP), tmp_path, generations=[OLD, NEW])
    before = torch.get_rng_state()
    head = saved.load(tmp_path).head
    assert torch.equal(before, torch.get_rng_state())
    draw = torch.Generator().manual_seed(0)
    head.fit(pairing.of(torch.randn(40, 8, generator=draw), torch.randn(40, 12, generator=draw)), steps=5)
    assert all(
        torch.equal(a, b) for a, b in zip(head.state_dict().values(), fitted(ResidualMLP).state_dict().values(), strict=True)
    )


def test_a_chain_of_three_updates(tmp_path: Path) -> None:
    first, second, third = fitted(Ridge, 12, 8), fitted(LowRankAffine, 10, 12, rank=4), fitted(Procrustes, 9, 10)
    second.previous, third.previous = first, second
    widths = [8, 12, 10, 9]
    stamps = [Generation(number, f"encoder {number}", width) for number, width in enumerate(widths)]
    saved.save(third, tmp_path, generations=stamps)
    found = saved.load(tmp_path)
    assert found.head.newest == 3
    x = torch.randn(4, 9)
    for generation, width in enumerate(widths):
        assert found.head.project(x, generation).shape == (4, width)
        assert torch.equal(found.head.project(x, generation), third.project(x, generation))


def test_a_saved_head_serves_the_encoders_it_was_fitted_for(folder: Path) -> None:
    found = saved.load(folder)
    found.require(OLD.encoder, 0)
    found.require(NEW.encoder, 1)
    with pytest.raises(GenerationError, match="old encoder"):
        found.require(NEW.encoder, 0)
    for number in (-1, 2):
        with pytest.raises(GenerationError, match="0 to 1"):
            found.require(OLD.encoder, number)


def test_a_second_save_replaces_the_first_and_nothing_else(folder: Path) -> None:
    other, first = fitted(seed=1), table(folder)["weights"]
    (folder / "model.safetensors").write_bytes(b"somebody's")
    saved.save(other, folder, generations=[OLD, NEW])
    assert {path.name for path in folder.iterdir()} == {saved.HEAD, "model.safetensors", table(folder)["weights"]}
    assert first != table(folder)["weights"]
    saved.save(other, folder, generations=[OLD, NEW])  # the same weights, which have the same name, stay
    x = torch.randn(3, 12)
    assert torch.equal(saved.load(folder).head.project(x, 0), other.project(x, 0))


WRITER = """
import sys, torch
from pathlib import Path
from instar.compat import saved
from instar.compat.ridge import Ridge
from instar.interfaces import Generation
head = Ridge(12, 8)
print("ready", flush=True)
for turn in range(10**9):
    head.weight.fill_(1.0 + turn % 50)
    head.bias.fill_(1.0 + turn % 50)
    saved.save(head, Path(sys.argv[1]), generations=[Generation(0, "a", 8), Generation(1, "b", 12)])
"""


def test_readers_beside_a_writer_that_is_killed(tmp_path: Path) -> None:
    """Whatever is read is one head, whole: all of its numbers are of the same turn. So is what a killed writer leaves."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        while not (tmp_path / saved.HEAD).exists():
            assert writer.poll() is None
        seen = [_number(tmp_path) for _ in range(40)]
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert len(set(seen)) > 1
    assert _number(tmp_path) >= 1


def _number(folder: Path) -> float:
    head = saved.load(folder).head
    values = torch.cat([value.flatten() for value in head.state_dict().values()]).unique()
    assert len(values) == 1
    return float(values)


def test_a_full_disk_leaves_the_old_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.load(folder).head.state_dict()["weight"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        saved.save(fitted(seed=1), folder, generations=[OLD, NEW])
    assert torch.equal(saved.load(folder).head.state_dict()["weight"], before)


@pytest.mark.parametrize(
    ("stamps", "words"),
    [
        ([OLD], "expected 2 of them, found 1"),
        ([OLD, NEW, NEW], "expected 2 of them, found 3"),
        ([NEW, OLD], "expected generation 0 of width 8"),
        ([OLD, Generation(1, "b", 13)], "expected generation 1 of width 12, found 1 of width 13"),
        ([OLD, Generation(1, "", 12)], "lacks its number, width, encoder or name"),
    ],
)
def test_generations_that_are_not_the_head_s(tmp_path: Path, stamps: list[Generation], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        saved.save(fitted(), tmp_path / "head", generations=stamps)
    assert not (tmp_path / "head").exists()


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    class Mine(Ridge):
        pass

    with pytest.raises(UnknownNameError, match="Give it a card"):
        saved.save(Mine(12, 8), tmp_path, generations=[OLD, NEW])
    with pytest.raises(ShapeError, match="JSON"):
        saved.save(fitted(), tmp_path, generations=[OLD, NEW], facts={"vectors": torch.ones(2)})
    with pytest.raises(ShapeError, match="JSON"):
        saved.save(fitted(), tmp_path, generations=[OLD, NEW], facts={"loss": float("nan")})
    with pytest.raises(ShapeError, match="float16"):
        saved.save(fitted().half(), tmp_path, generations=[OLD, NEW])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no head"):
        saved.load(tmp_path / "nowhere")


HOSTILE: list[tuple[str, Any, str]] = [
    ("format", "instar-head-2", "no head of the format"),
    ("extra", 1, "no head of the format"),
    ("weights", "../../etc/passwd", "does not hold what it should"),
    ("weights", "a" * 64 + ".safetensors", "is gone; the head is not whole"),
    ("weights", 3, "does not hold what it should"),
    ("dtype", "float8", "float32 or float64"),
    ("dtype", "float64", "expected finite torch.float64"),
    ("heads", [], "1 to 64 heads"),
    ("heads", [{}] * 65, "1 to 64 heads"),
    ("heads", ["ridge"], "describes no head"),
    ("heads", [{"method": "ridge"}], "describes no head"),
    ("heads", [{"method": ["ridge"], "new_dim": 12, "old_dim": 8, "knobs": {}}], "describes no head"),
    ("heads", [{"method": "ridge", "new_dim": "12", "old_dim": 8, "knobs": {}}], "describes no head"),
    ("heads", [{"method": "ridge", "new_dim": True, "old_dim": 8, "knobs": {}}], "describes no head"),
    ("heads", [{"method": "gla", "new_dim": 12, "old_dim": 8, "knobs": {}}], "no compatible head"),
    ("heads", [{"method": "ridge", "new_dim": 12, "old_dim": 8, "knobs": {"penalty": "low"}}], "describes no ridge"),
    ("heads", [{"method": "ridge", "new_dim": 12, "old_dim": 8, "knobs": {"depth": 2}}], "describes no ridge"),
    ("heads", [{"method": "ridge", "new_dim": 12, "old_dim": -8, "knobs": {}}], "describes no ridge"),
    ("heads", [{"method": "ridge", "new_dim": 10**9, "old_dim": 10**9, "knobs": {}}], "does not fit"),
    ("heads", [{"method": "ridge", "new_dim": 10**30, "old_dim": 8, "knobs": {}}], "describes no ridge"),
    ("heads", [{"method": "residual_mlp", "new_dim": 12, "old_dim": 8, "knobs": {"hidden": 10**9}}], "does not fit"),
    ("heads", [{"method": "procrustes", "new_dim": 12, "old_dim": 8, "knobs": {}}], "scales is missing"),
    ("heads", [{"method": "ridge", "new_dim": 8, "old_dim": 12, "knobs": {}}], "shape"),
    ("generations", [], "expected 2 of them"),
    ("generations", {"0": "a"}, "does not hold what it should"),
    ("generations", ["a", "b"], "head.json"),
    ("generations", [{"number": 0, "encoder": "a", "dim": 8, "run": "rm"}], "head.json"),
    ("generations", [{"number": 0, "encoder": 7, "dim": 8}, {"number": 1, "encoder": "b", "dim": 12}], "lacks its number"),
    ("calibration", {"reference": 0}, "no calibration"),
    ("calibration", [], "no calibration"),
    ("facts", [], "does not hold what it should"),
]


@pytest.mark.parametrize(("key", "value", "words"), HOSTILE, ids=[f"{k}-{n}" for n, (k, _, _) in enumerate(HOSTILE)])
def test_hostile_json(folder: Path, key: str, value: Any, words: str) -> None:
    (folder / saved.HEAD).write_text(json.dumps({**table(folder), key: value}), "utf-8")
    with pytest.raises(CheckpointError, match=words):
        saved.load(folder)


@pytest.mark.parametrize("name", ["riddge", "os.system", "instar.compat.ridge:Ridge", "../ridge"])
def test_only_methods_of_the_catalogue_are_built(folder: Path, name: str) -> None:
    heads = table(folder)["heads"]
    heads[0]["method"] = name
    (folder / saved.HEAD).write_text(json.dumps({**table(folder), "heads": heads}), "utf-8")
    with pytest.raises(UnknownNameError, match="method"):
        saved.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800", "[" * 100_000, '{"format": NaN}'])
def test_what_is_no_json_of_a_head(folder: Path, text: str) -> None:
    (folder / saved.HEAD).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError):
        saved.load(folder)


def test_every_truncation_and_every_flipped_byte_of_the_weights(folder: Path) -> None:
    path = folder / table(folder)["weights"]
    content = path.read_bytes()
    for end in range(0, len(content), 37):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match="altered or truncated"):
            saved.load(folder)
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="altered or truncated"):
            saved.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "0.weight": t["0.weight"].fill_(torch.nan)}, "not finite"),
        (lambda t: {**t, "0.weight": t["0.weight"].half()}, "expected finite torch.float32"),
        (lambda t: {**t, "0.weight": t["0.weight"].long()}, "instead of torch.float32"),
        (lambda t: {**t, "0.weight": t["0.weight"][:, :3].contiguous()}, "shape"),
        (lambda t: {**t, "1.weight": t["0.weight"].clone()}, "unexpected"),
        (lambda t: {"0.weight": t["0.weight"]}, "0.bias is missing"),
    ],
)
def test_weights_that_hash_right_and_fit_badly(folder: Path, change: Any, words: str) -> None:
    content = as_bytes(change(load_file(folder / table(folder)["weights"])))
    name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    (folder / name).write_bytes(content)
    (folder / saved.HEAD).write_text(json.dumps({**table(folder), "weights": name}), "utf-8")
    with pytest.raises(CheckpointError, match=words):
        saved.load(folder)
