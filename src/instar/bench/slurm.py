"""Jobs through Slurm, by submitit; its local executor is for trying that out on one machine."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from instar import extras
from instar.bench import remote
from instar.bench.executor import Job, Outcome
from instar.errors import InstarError, PlanError

SPARE_MINUTES = 10
"""What Slurm allows beyond a job's own limit, for starting."""


class SlurmExecutor:
    """One job, one job of Slurm, in a fresh process on its machine; a job that is alone has the machine for itself.

    Args:
        parameters: of submitit without the prefix slurm_, such as partition, account, mem. folder: for submitit's files. threads:
            of a job. cluster: `slurm`, or `local` for processes of this machine. poll: seconds between looks at the queue.

    Raises PlanError where Slurm is not there or refuses a parameter; MissingExtraError.
    """

    def __init__(
        self,
        parameters: dict[str, str] | None = None,
        folder: Path = Path("runs/slurm"),
        threads: int = 1,
        cluster: str = "slurm",
        poll: float = 2.0,
    ) -> None:
        self._submitit = extras.require("submitit", "slurm")
        self.folder, self.threads, self.cluster, self.poll = folder, threads, cluster, poll
        self.parameters = parameters or {}

    def run(self, jobs: Iterable[Job], done: Callable[[Outcome], None], progress: Callable[[str, int, float], None]) -> None:
        home = remote.Home.here()
        waiting: dict[Any, Job] = {}
        try:
            for job in jobs:
                waiting[self._submit(job, home)] = job
            while waiting:
                for handle in [handle for handle in waiting if handle.done()]:
                    done(self._outcome(handle, waiting.pop(handle)))
                if waiting:
                    time.sleep(self.poll)
        finally:
            for handle in waiting:  # an interrupt or an error here: nothing goes on unseen
                with contextlib.suppress(Exception):
                    handle.cancel()

    def _submit(self, job: Job, home: remote.Home) -> Any:
        given: dict[str, Any] = {f"slurm_{key}": value for key, value in self.parameters.items()}
        if self.cluster == "slurm" and job.alone:
            given["slurm_exclusive"] = True
        try:
            executor = self._submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(
                name="instar",
                cpus_per_task=self.threads,
                timeout_min=math.ceil(job.limit / 60) + SPARE_MINUTES,
                **given,
            )
            return executor.submit(remote.work, job, home)
        except (RuntimeError, ValueError, TypeError, NameError, self._submitit.core.utils.FailedJobError) as error:
            raise PlanError(f"{self.cluster} takes no jobs here: {str(error).splitlines()[0]}") from error

    def _outcome(self, handle: Any, job: Job) -> Outcome:
        try:
            error = handle.exception()
        except Exception as lost:
            error = lost
        if error is None:
            found = handle.result()
            assert isinstance(found, Outcome)
            return found
        if isinstance(error, InstarError):
            raise error
        text = str(error).strip()
        if "PlanError" in text:  # what a job raised comes back as text
            raise PlanError(text.rsplit("PlanError: ", 1)[-1].splitlines()[0])
        state = str(getattr(handle, "state", "")).lower()
        return Outcome(
            job.name, "killed", reason=f"{self.cluster} lost the job ({state}): {text.splitlines()[-1] if text else 'no output'}"
        )
