"""What a worker on another machine does with a job: it runs it as this machine would, in a fresh process with a limit."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from instar.bench.executor import Job, LocalExecutor, Outcome
from instar.errors import PlanError


@dataclass(frozen=True)
class Home:
    """Where the work was sent from, and what ran there."""

    folder: str
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls) -> Home:
        return cls(str(Path.cwd()), versions())


def versions() -> tuple[tuple[str, str], ...]:
    """What must be equal on all machines of a comparison."""
    return (*((name, metadata.version(name)) for name in ("instar", "torch", "numpy")), ("python", platform.python_version()))


def work(job: Job, home: Home) -> Outcome:
    """Run one job in a process of its own. Paths are those of a file system that the machines share.

    Raises PlanError where this machine runs other versions, or does not see the folder.
    """
    host = platform.node()
    here = dict(versions())
    if other := [f"{name} {here[name]} instead of {wanted}" for name, wanted in home.versions if here[name] != wanted]:
        raise PlanError(
            f"{host} runs {', '.join(other)}: records of one comparison come from equal versions. Install the same there."
        )
    try:
        os.chdir(home.folder)
    except OSError as error:
        raise PlanError(
            f"{host} does not see {home.folder} ({error.strerror}): the machines of a cluster share the folder of the command."
        ) from error
    found: list[Outcome] = []
    LocalExecutor(1).run([job], found.append, lambda *_: None)
    return found[0]
