"""Jobs on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any

from instar import extras
from instar.bench import remote
from instar.bench.executor import Job, Outcome
from instar.errors import InstarError, PlanError

SECONDS = 10.0
"""How long an address may take to answer."""
RETRIES = 2
"""How often a job is sent again when its machine or worker is gone."""


class RayExecutor:
    """One job, one fresh process on a machine of the cluster; each takes `threads` of its cores, a job that is alone a whole one.

    Args:
        address: HOST:PORT of the head node, or `auto` for the cluster that this machine belongs to. threads: of a job.

    A job whose worker or machine dies is sent to another, at most twice; what it returns then is its record. Raises PlanError for
    an address that does not answer; MissingExtraError.
    """

    def __init__(self, address: str, threads: int = 1) -> None:
        self._ray = extras.require("ray", "ray")
        self.threads = threads
        if address != "auto":
            _knock(address)
        if not self._ray.is_initialized():
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise PlanError(
                    f"No Ray cluster at {address}: {str(error).splitlines()[0]}. Start one: ray start --head"
                ) from error

    def run(self, jobs: Iterable[Job], done: Callable[[Outcome], None], progress: Callable[[str, int, float], None]) -> None:
        ray = self._ray
        home = remote.Home.here()
        whole = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
        waiting: dict[Any, Job] = {}
        try:
            for job in jobs:
                function = ray.remote(num_cpus=whole if job.alone else self.threads, max_retries=RETRIES)(remote.work)
                waiting[function.remote(job, home)] = job
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                for handle in ready:
                    done(self._outcome(handle, waiting.pop(handle)))
        finally:
            for handle in waiting:  # an interrupt or an error here: nothing goes on unseen
                with contextlib.suppress(Exception):
                    ray.cancel(handle, force=True)

    def _outcome(self, handle: Any, job: Job) -> Outcome:
        try:
            found = self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), InstarError) else None
            if cause is not None:
                raise cause from None
            return Outcome(job.name, "error", reason=str(error).strip().splitlines()[-1])
        except self._ray.exceptions.RayError as error:
            return Outcome(
                job.name, "killed", reason=f"its worker was lost {RETRIES + 1} times: {str(error).strip().splitlines()[0]}"
            )
        assert isinstance(found, Outcome)
        return found


def _knock(address: str) -> None:
    """Raises PlanError where nothing listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not host or not port.isdigit():
            raise OSError("expected HOST:PORT")
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PlanError(f"No cluster answers at {address} ({error}). Start one: ray start --head --port 6379") from error
