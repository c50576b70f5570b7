"""Offloaded AdamW in processes of their own: killed again and again, and under a memory limit that kills plain AdamW."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import offload_runs as runs
import pytest
import torch

from instar.optim.offloaded_adamw import OffloadedAdamW

ROOM = 56 << 20
"""Bytes for state, buffers and two threads' stacks of 8 MiB, once the model is there; its state has 80 MiB."""


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Processes that begin with everything imported: torch brings its compiler in with the first optimiser."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "instar.optim.offloaded_adamw", "instar.models.decoder", "instar.mixers.softmax"]
    )
    return context


def resident(process: BaseProcess) -> int:
    """Bytes of memory of its own that a process has in use; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(server: ForkServerContext, tmp_path: Path) -> None:
    """SIGKILL in the middle of the n-th write of a process, n random: of moments, weights and records alike."""
    whole = runs.network()
    runs.train(whole, OffloadedAdamW(whole, **runs.FINE), 12)
    chance, kills = random.Random(0), 0
    while not (tmp_path / "weights.pt").exists():
        write = chance.randrange(1, 40) if kills < 12 else 0
        process = server.Process(target=runs.killed_run, args=(str(tmp_path), 12, write))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
    assert kills >= 5
    last = runs.network()
    last.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert runs.same(whole, last)


def limited(server: ForkServerContext, arguments: dict[str, Any] | None, folder: Path) -> tuple[int | None, int]:
    """Exit code of a run under the limit, and the most memory that it took beyond its model; killed where that is too much."""
    folder.mkdir()
    process = server.Process(target=runs.limited_run, args=(arguments, 3, ROOM, str(folder)))
    process.start()
    wait(lambda: (folder / "ready").exists() or not process.is_alive())
    before, most = resident(process), 0
    while process.is_alive() and not (folder / "weights.pt").exists():
        most = max(most, resident(process) - before)
        if most > ROOM:
            process.kill()
        time.sleep(2e-3)
    process.join()
    return process.exitcode, most


def wait(until: Callable[[], bool]) -> None:
    while not until():
        time.sleep(1e-3)


def test_state_that_is_larger_than_the_memory_limit(server: ForkServerContext, tmp_path: Path) -> None:
    code, _ = limited(server, None, tmp_path / "plain")
    assert code not in (0, None), "plain AdamW lives under the limit"
    budget = 20 << 20
    code, most = limited(server, {"budget_bytes": budget}, tmp_path / "ours")
    assert (code, most < ROOM) == (0, True)
    there = runs.reader_of_text(None, 3)
    state = sum(2 * 4 * p.numel() for p in there.parameters())
    assert budget < ROOM < state
    found = torch.load(tmp_path / "ours" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, found[name]) for name, value in there.state_dict().items())
