"""A run that crashes, hangs, is killed or diverges is an outcome with a reason, and harms no other run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from instar.bench.executor import Job, LocalExecutor, Outcome
from instar.errors import DataError, DivergedError


def fine(value: int, progress: Any) -> int:
    progress(1, 0.5)
    return value * 2


def crash(progress: Any) -> None:
    raise ZeroDivisionError("planted")


def diverge(progress: Any) -> None:
    raise DivergedError("loss is nan at step 3")


def bad_data(progress: Any) -> None:
    raise DataError("no such file")


def killed(progress: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(progress: Any) -> None:
    os._exit(7)


def hang(progress: Any) -> None:
    time.sleep(600)


def spin(progress: Any) -> None:
    while True:
        pass


def stopped(progress: Any) -> str:
    subprocess.Popen(["sh", "-c", f"sleep 3.5; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def no_memory(progress: Any) -> None:
    import torch

    torch.empty(1 << 50)


def mark(path: str, progress: Any) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def outcomes(*jobs: Job, parallel: int = 2) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    LocalExecutor(parallel).run(jobs, lambda o: found.__setitem__(o.name, o), lambda *_: None)
    return found


def test_every_end_is_told() -> None:
    found = outcomes(
        Job("fine", fine, (21,), 60),
        Job("crash", crash, (), 60),
        Job("diverge", diverge, (), 60),
        Job("data", bad_data, (), 60),
        Job("killed", killed, (), 60),
        Job("leave", leave, (), 60),
        Job("hang", hang, (), 1.0),
        Job("memory", no_memory, (), 60),
        Job("after", fine, (1,), 60),
    )
    assert {name: o.status for name, o in found.items()} == {
        "fine": "ok",
        "crash": "error",
        "diverge": "diverged",
        "data": "error",
        "killed": "killed",
        "leave": "error",
        "hang": "timeout",
        "memory": "killed",
        "after": "ok",
    }
    assert found["fine"].value == 42
    assert found["crash"].reason == "ZeroDivisionError: planted"
    assert "in crash" in str(found["crash"].detail)
    assert found["diverge"].reason == "loss is nan at step 3"
    assert "7" in str(found["leave"].reason)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_is_stretched_where_the_machine_gives_no_time() -> None:
    begin = time.monotonic()
    found = outcomes(Job("spin", spin, (), 1.0), Job("stopped", stopped, (), 3.0))
    assert found["spin"].status == "timeout"
    assert found["stopped"].value == "went on"
    assert outcomes(Job("hang", hang, (), 0.5))["hang"].status == "timeout"
    assert time.monotonic() - begin < 120


def test_every_job_has_a_process_of_its_own() -> None:
    found = outcomes(*(Job(str(i), os_pid, (), 60) for i in range(4)))
    assert len({o.value for o in found.values()} | {os.getpid()}) == 5


def os_pid(progress: Any) -> int:
    return os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from instar.bench.executor import Job, LocalExecutor\n"
        "import test_executor\n"
        "if __name__ == '__main__':\n"
        "    LocalExecutor(1).run([Job('x', test_executor.mark, (sys.argv[2],), 600)], print, print)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(marker)])
    deadline = time.monotonic() + 60
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int(marker.read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("cores", "jobs", "asked", "threads"),
    [
        (8, 2, None, 4),
        (8, 2, "1", 1),
        (8, 2, "3,2", 3),
        (8, 2, "6", 4),
        (2, 4, None, 1),
        (8, 1, "", 8),
        (8, 1, "0", 8),
        (8, 1, "x", 8),
    ],
)
def test_jobs_share_the_cores_and_keep_to_what_the_user_allows(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, asked: str | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert LocalExecutor(jobs).threads == threads
