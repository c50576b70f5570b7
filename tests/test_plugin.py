"""Another package's method is listed, checked, compared and reported with no change here (it touches three files: its own)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from instar import catalogue

TOY = Path(__file__).parent / "fixtures" / "toy_package"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that borrows this one's packages and has the toy package installed."""
    root = tmp_path_factory.mktemp("outside")
    env = root / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-c", query], check=True, capture_output=True, text=True).stdout.strip()
    borrowed = sysconfig.get_path("purelib")
    (Path(site) / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
    copy = root / "toy"
    subprocess.run(["cp", "-r", str(TOY), str(copy)], check=True)
    install = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--target", site, str(copy)]
    subprocess.run([sys.executable, *install], check=True)
    return python


def instar(python: Path, *words: str, cwd: Path) -> str:
    """Run the command line in that environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([str(python), "-m", "instar", *words], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"instar {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_package_s_method_goes_all_the_way(python: Path, tmp_path: Path) -> None:
    listed = {entry["slug"]: entry for entry in json.loads(instar(python, "list", "--json", cwd=tmp_path))}
    assert listed["moving_average"]["presets"] == ["slow"]
    assert "Moving average" in instar(python, "show", "moving_average:slow", cwd=tmp_path)
    assert "0 failed" in instar(python, "check", "moving_average", cwd=tmp_path)
    words = (
        "compare",
        "recall",
        "--methods",
        "moving_average:slow",
        "--seeds",
        "1",
        "--budget",
        "3steps",
        "--no-timing",
        "--json",
    )
    result = json.loads(instar(python, *words, "--out", "runs", cwd=tmp_path))
    addresses = [m["address"] for m in result["comparisons"][0]["methods"]]
    assert addresses == ["softmax", "moving_average:slow"]
    assert result["failed"] == 0
    instar(python, "report", "runs", "-o", "page.html", cwd=tmp_path)
    assert "moving_average:slow" in (tmp_path / "page.html").read_text()


def test_listing_does_not_import_the_package(python: Path, tmp_path: Path) -> None:
    code = "import sys; from instar import catalogue; assert 'moving_average' in catalogue.methods(); "
    code += "assert 'toy_mixers' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([str(python), "-c", code], check=True, cwd=tmp_path)


def test_an_editable_module_has_its_card_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists no files, as an editable install, and is one module, as on docs/own-problem.md."""
    (tmp_path / "moving_average.py").write_text("raise RuntimeError('finding imports nothing')")
    (tmp_path / "moving_average.toml").write_text((TOY / "src" / "toy_mixers" / "moving_average.toml").read_text())
    metadata = tmp_path / "alone-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: alone\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[instar.methods]\nmoving_average = moving_average:MovingAverage\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue._discover.cache_clear()
    try:
        assert catalogue.methods()["moving_average"].path == tmp_path / "moving_average.toml"
    finally:
        catalogue._discover.cache_clear()


def test_a_single_file_is_added_without_a_package(python: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text((TOY / "src" / "toy_mixers" / "moving_average.py").read_text())
    assert "0 failed" in instar(python, "check", "mine.py:MovingAverage", cwd=tmp_path)
    words = ("compare", "recall", "--add", "mine.py:MovingAverage", "--seeds", "1", "--budget", "3steps", "--no-timing", "--json")
    result = json.loads(instar(python, *words, "--out", "runs", cwd=tmp_path))
    assert [m["address"] for m in result["comparisons"][0]["methods"]] == ["softmax", "mine"]
    assert json.loads(instar(python, *words, "--out", "runs", cwd=tmp_path))["ran"] == 0
    file.write_text(file.read_text() + "\n# changed\n")
    again = subprocess.run([str(python), "-m", "instar", *words, "--out", "runs"], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(again.stdout)["ran"] == 1  # another text is another run
