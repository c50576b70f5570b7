"""The path of a stranger: the wheel alone, own files, and the very commands that docs/start.md prints.

The wheel stands in an empty environment that borrows its dependencies but not this checkout. The files are not those of the page:
another number of rows and other texts under the same names.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "start.md").read_text("utf-8")
COMMANDS = {
    title: [line for block in re.findall(r"^```sh\n(.*?)^```$", body, re.S | re.M) for line in block.splitlines()]
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}
"""Heading of the page -> its commands. What stands before the first heading makes the page's own files."""

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("wheel"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel and borrows the rest."""
    root = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root), str(ROOT))
    env = root / "env"
    run(sys.executable, "-m", "venv", "--without-pip", str(env))
    (wheel,) = root.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", str(env), "install", "-q", "--no-deps", "--no-index", str(wheel))
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = run(str(env / "bin" / "python"), "-c", query).strip()
    # A path in a .pth file is searched, but .pth files in it are not read: an editable install of Instar there is not seen.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(str(env / "bin" / "python"), "-c", "import instar; print(instar.__file__)").strip()
    assert where.startswith(site), where
    return env / "bin"


def run(*words: str, cwd: Path | None = None, programs: Path | None = None) -> str:
    """Run a command without what this process knows of Instar; its output."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "INSTAR_DATA")}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "160"}
    if programs is not None:
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(title: str, programs: Path, cwd: Path) -> Iterator[str]:
    """What each command under a heading says."""
    assert 1 <= len(COMMANDS[title]) <= 3
    for line in COMMANDS[title]:
        assert line.startswith("instar ")
        yield run("bash", "-uc", line, cwd=cwd, programs=programs)


def test_two_files_of_vectors_to_advice(programs: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(30, 24))[draw.integers(30, size=260)] + 0.6 * draw.normal(size=(260, 24))
    names = np.array([f"page-{i}" for i in range(260)])
    mixed = draw.permutation(260)  # ids, not places, say which rows belong together
    np.savez(tmp_path / "old.npz", ids=names, vectors=rows + 0.5 * draw.normal(size=rows.shape))
    np.savez(tmp_path / "new.npz", ids=names[mixed], vectors=(rows @ np.linalg.qr(draw.normal(size=(24, 24)))[0])[mixed])
    title = "A better embedding model is out. Must everything be re-encoded?"
    (said,) = follow(title, programs, tmp_path)
    assert "Without re-encoding anything, the map" in said  # the new vectors are the old ones turned, and sharper
    assert "<svg" in (tmp_path / "encoder.html").read_text("utf-8")


def test_two_files_of_answers_to_a_decision(programs: Path, tmp_path: Path) -> None:
    title = "A new version is ready. Does it break what worked?"
    for broken, answer in ((0, "PASS"), (60, "FAIL")):
        for name, wrong in (("old", range(0)), ("new", range(broken))):
            lines = [json.dumps({"id": f"q{i}", "label": "a", "output": "b" if i in wrong else "a"}) for i in range(500)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        (said,) = follow(title, programs, tmp_path)
        assert answer in said
        assert ("exit code 1" in said) == (answer == "FAIL")
        assert answer.lower() in (tmp_path / "gate.html").read_text("utf-8").lower()


def test_a_text_to_a_comparison(programs: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    words = ["larva", "pupa", "wing", "moult", "egg", "leaf", "silk", "and", "then", "slowly"]
    lines = (" ".join(draw.choice(words, 12)) for _ in range(4000))
    (tmp_path / "book.txt").write_text("\n".join(lines))
    compared, *_ = follow("Which part suits my data?", programs, tmp_path)
    assert "6 runs made, 0 failed" in compared  # two methods, three seeds
    assert "softmax" in compared
    assert "gla" in compared
    assert "book.txt" in (tmp_path / "book.html").read_text("utf-8")
