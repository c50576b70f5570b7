"""`instar doctor`: what is broken is found, by planting it, and every finding that is not ok says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from instar.doctor import EXAMINATIONS, builds, machine, packages
from instar.doctor.finding import Finding
from instar.doctor.trying import tried


def one(examination: Callable[[], Iterable[Finding]]) -> Finding:
    """The only finding of an examination."""
    (finding,) = examination()
    return finding


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", "instar", "doctor", *words], capture_output=True, text=True, env=env)


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """A module that is found before the one that is installed."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.timeout(300)
def test_a_sound_machine_is_exit_code_0_and_imports_no_torch_itself(tmp_path: Path) -> None:
    done = doctor("--json", XDG_CACHE_HOME=str(tmp_path), OMP_WAIT_POLICY="PASSIVE")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"]
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert {
        "python",
        "packages",
        "torch",
        "threads",
        "torchvision",
        "kernels",
        "waiting",
        "memory",
        "cache",
        "data",
    } <= found.keys()
    assert found["waiting"]["level"] == "ok"
    assert found["kernels"]["level"] in ("note", "warning")  # nothing was built into this cache
    assert "instar kernels build" in found["kernels"]["fix"]
    assert all(finding["fix"] for finding in answer["findings"] if finding["level"] in ("warning", "error"))


@pytest.mark.timeout(300)
def test_a_broken_machine_is_exit_code_1(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    (tmp_path / "torch.py").write_text("raise ImportError('undefined symbol: iJIT_NotifyEvent')")
    planted = os.pathsep.join([str(tmp_path), *sys.path])
    done = doctor(XDG_CACHE_HOME=str(blocked), INSTAR_DATA=str(tmp_path / "nowhere"), PYTHONPATH=planted)
    assert done.returncode == 1
    assert "FAIL cache" in done.stdout
    assert "export XDG_CACHE_HOME" in done.stdout
    assert "FAIL data" in done.stdout
    assert "FAIL torch" in done.stdout
    assert "undefined symbol: iJIT_NotifyEvent" in done.stdout
    assert "3 errors" in done.stdout


def test_a_torch_that_crashes_does_not_take_the_doctor_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, tmp_path, "torch", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "signal 11" in one(builds.torch).said


def test_a_torchvision_of_another_build_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    found = one(builds.torchvision)
    assert found.level == "error"
    assert "nms" in found.said
    assert "pip uninstall torchvision" in found.fix


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = machine.available_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for threads, wanted, levels in ((1, "", ["ok"]), (1, "999", ["warning"]), (int(cores) + 1, "1", ["warning"])):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        found = list(builds._threads({"threads": threads, "openmp": ["libgomp"]}))
        assert [finding.level for finding in found] == levels
    assert "export OMP_NUM_THREADS=" in found[0].fix
    several = list(builds._threads({"threads": 1, "openmp": ["libgomp", "libiomp5"]}))
    assert several[1].level == "warning"
    assert "libiomp5" in several[1].said


@pytest.mark.parametrize(("value", "level"), [("PASSIVE", "ok"), ("passive", "ok"), ("active", "warning"), ("", "note")])
def test_spinning_threads_are_told_of(monkeypatch: pytest.MonkeyPatch, value: str, level: str) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", value)
    found = one(machine.waiting)
    assert found.level == level
    assert (level == "ok") == (found.fix == "")


def test_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text("50000 100000\n")
    (tmp_path / "max").write_text(f"{2**30}\n")
    (tmp_path / "used").write_text(f"{2**30 - 2**20}\n")
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu")
    monkeypatch.setattr(machine, "_MEMORY_LIMIT", tmp_path / "max")
    monkeypatch.setattr(machine, "_MEMORY_USED", tmp_path / "used")
    assert machine.available_cores() == 0.5
    found = one(machine.memory)
    assert found.level == "warning"
    assert found.said.startswith("0.0 of 1.0 GiB")
    (tmp_path / "cpu").write_text("max 100000\n")
    (tmp_path / "max").write_text("max\n")
    assert machine.available_cores() >= 1
    assert not one(machine.memory).said.startswith("0.0 of 1.0")


def test_packages_are_held_to_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["torch>=999", "numpy>=1.26", "nosuchpackage>=1", "psycopg[binary]>=3.2; extra == 'postgres'",
                "nosuchextra>=1; extra == 'things'", "ruff>=0.8; extra == 'dev'"]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found: dict[str, Finding] = {finding.name: finding for finding in [*packages.core(), *packages.extras()]}
    assert found["packages"].level == "error"
    assert "torch" in found["packages"].said
    assert "nosuchpackage is not installed" in found["packages"].said
    assert "numpy" not in found["packages"].said
    assert found["extra things"].fix == "pip install 'instar[things]'"
    assert "extra dev" not in found


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.10"), ("2.13.0+cpu", "2.14"), ("1", "1.0.1"), ("", "0.1"), ("2.0rc1", "2.1")]
)
def test_versions_are_numbers(older: str, newer: str) -> None:
    assert packages._numbers(older) < packages._numbers(newer)
    assert packages._numbers("2.13.0+cpu") == packages._numbers("2.13")


def test_every_examination_finds_something() -> None:
    names: list[Any] = [examination.__name__ for examination in EXAMINATIONS]
    assert len(set(names)) == len(names)
    assert tried("print('no JSON')")[0] is None
    assert tried("import json; print('noise'); print(json.dumps([1]))") == ([1], "")
