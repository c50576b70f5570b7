"""From the words of `--cluster` to an executor."""

from __future__ import annotations

from pathlib import Path

from instar.bench.executor import Executor
from instar.errors import PlanError


def executor(text: str, folder: Path, threads: int = 1) -> Executor:
    """HOST:PORT or `auto` (Ray), `slurm` or `slurm:partition=…,account=…`, `submitit` (its local processes, to try it out).

    folder: for files of the queue. Raises PlanError, MissingExtraError.
    """
    kind, _, rest = text.partition(":")
    if kind in ("slurm", "submitit"):
        from instar.bench.slurm import SlurmExecutor

        pairs = [word.partition("=") for word in rest.split(",") if word]
        if bad := [key for key, sign, value in pairs if not (key and sign and value)]:
            raise PlanError(f"--cluster {kind} expects key=value,…; received '{bad[0]}'.")
        return SlurmExecutor({key: value for key, _, value in pairs}, folder, threads, "slurm" if kind == "slurm" else "local")
    if not text.strip():
        raise PlanError("--cluster expects HOST:PORT or auto (Ray), slurm[:key=value,…] or submitit; received nothing.")
    from instar.bench.ray_cluster import RayExecutor

    return RayExecutor(text, threads)
