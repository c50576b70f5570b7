"""Where tasks run: `Executor` is the seam. `LocalExecutor` gives every task a fresh process on this machine.

Processes come from a fork server with torch preloaded (a few hundredths of a second each), so the peak memory of a run is its
own and a crash harms no other. A worker dies with its parent, whatever kills that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Protocol

from instar.errors import DivergedError, InstarError

PATIENCE = 4
"""How many times its limit a job may take where the machine gives it less than half of a core: that is no fault of the job."""

Work = Callable[..., Any]
"""`work(*arguments, progress)` in the worker; what it returns comes back. It must be importable by name."""


@dataclass(frozen=True)
class Job:
    """A piece of work with its name and its time limit in seconds, which a busy machine stretches."""

    name: str
    work: Work
    arguments: tuple[Any, ...]
    limit: float
    alone: bool = False
    """Whether nothing else may run on its machine meanwhile: it is timed."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `status` ok, diverged, timeout, killed or error."""

    name: str
    status: str
    value: Any = None
    reason: str | None = None
    detail: str | None = None
    """The traceback of an unexpected error."""


class Executor(Protocol):
    """Runs jobs, calls `done` for each as it ends and `progress` for each step that it reports."""

    threads: int
    """Of a job."""

    def run(self, jobs: Iterable[Job], done: Callable[[Outcome], None], progress: Callable[[str, int, float], None]) -> None: ...


@dataclass
class _Worker:
    job: Job
    process: ForkServerProcess
    inbox: Connection
    lifeline: Connection
    started: float = field(default_factory=time.monotonic)
    outcome: Outcome | None = None


class LocalExecutor:
    """At most `jobs` processes at a time, each with its share of the cores; OMP_NUM_THREADS, where it is set, is the most."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, min(cores // jobs, _most_threads(cores)))
        # Spinning threads on shared cores made small work up to 30 times slower; workers inherit this from the fork server.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._context = multiprocessing.get_context("forkserver")
        # What takes a run seconds to import (the tracker brings what `torch.optim` takes at its first use) is there for all.
        self._context.set_forkserver_preload(["torch", "instar.bench.run", "torch.distributed._tools.mem_tracker"])

    def run(self, jobs: Iterable[Job], done: Callable[[Outcome], None], progress: Callable[[str, int, float], None]) -> None:
        waiting = list(jobs)[::-1]
        running: list[_Worker] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs and not (running and (waiting[-1].alone or running[-1].job.alone)):
                    running.append(self._start(waiting.pop()))
                handles = [w.inbox for w in running if not w.inbox.closed] + [w.process.sentinel for w in running]
                wait(handles, timeout=0.25)
                for worker in list(running):
                    self._listen(worker, progress)
                    outcome = self._ended(worker)
                    if outcome is not None:
                        running.remove(worker)
                        worker.lifeline.close()
                        done(outcome)
        finally:
            for worker in running:  # an interrupt or an error here: nothing goes on unseen
                worker.process.kill()
                worker.process.join()

    def _start(self, job: Job) -> _Worker:
        inbox, outbox = self._context.Pipe(duplex=False)
        theirs, lifeline = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(job.work, job.arguments, outbox, theirs), daemon=True)
        process.start()
        outbox.close()
        theirs.close()
        return _Worker(job, process, inbox, lifeline)

    def _listen(self, worker: _Worker, progress: Callable[[str, int, float], None]) -> None:
        try:
            while not worker.inbox.closed and worker.inbox.poll():
                kind, content = worker.inbox.recv()
                if kind == "progress":
                    progress(worker.job.name, *content)
                else:
                    worker.outcome = Outcome(worker.job.name, **content)
        except (EOFError, OSError):
            worker.inbox.close()

    def _ended(self, worker: _Worker) -> Outcome | None:
        if worker.outcome is not None:
            worker.process.join()
            return worker.outcome
        seconds = time.monotonic() - worker.started
        if worker.process.is_alive():
            if seconds < worker.job.limit or (seconds < PATIENCE * worker.job.limit and _starved(worker.process.pid, seconds)):
                return None
            worker.process.kill()
            worker.process.join()
            return Outcome(worker.job.name, "timeout", reason=f"stopped after {seconds:.0f} s, its limit")
        self._listen(worker, lambda *_: None)  # what it said between the last look and its end
        if worker.outcome is not None:
            return worker.outcome
        code = worker.process.exitcode
        if code == -signal.SIGKILL:
            return Outcome(worker.job.name, "killed", reason="killed by the system (SIGKILL), most often for want of memory")
        return Outcome(worker.job.name, "error", reason=f"the process ended with exit code {code}")


def _starved(pid: int | None, seconds: float) -> bool:
    """Whether a process had less than half of a core; False where the system does not tell."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return False
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < seconds / 2


def _work(work: Work, arguments: tuple[Any, ...], outbox: Connection, lifeline: Connection) -> None:
    """The body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    last = 0.0

    def progress(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.25:
            last = time.monotonic()
            outbox.send(("progress", (step, loss)))

    try:
        content: dict[str, Any] = {"status": "ok", "value": work(*arguments, progress)}
    except DivergedError as error:
        content = {"status": "diverged", "reason": str(error)}
    except InstarError as error:
        content = {"status": "error", "reason": str(error)}
    except MemoryError as error:
        content = {"status": "killed", "reason": f"out of memory: {error}"}
    except Exception as error:
        out_of_memory = "allocate memory" in str(error) or "out of memory" in str(error)  # torch has no type for it on CPU
        content = {
            "status": "killed" if out_of_memory else "error",
            "reason": f"{type(error).__name__}: {error}".splitlines()[0],
            "detail": traceback.format_exc(limit=-12),
        }
    outbox.send(("outcome", content))


def _most_threads(cores: int) -> int:
    """What the user allows: two runs that are started by hand side by side would otherwise take all cores each."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) else cores


def _die_with(lifeline: Connection) -> None:
    """End this process when the parent's end of the pipe closes, even if the parent was killed outright."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
