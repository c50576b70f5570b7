"""Cores, waiting threads, memory, and the folders that are written to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from instar import files
from instar.data import datasets
from instar.doctor.finding import Finding
from instar.errors import OutputError

_GIB = 2**30
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMORY_USED = Path("/sys/fs/cgroup/memory.current")


def available_cores() -> float:
    """Cores that this process may use: its affinity, and the quota of its container where there is one."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def cores() -> Iterator[Finding]:
    """Whether the machine is busy, which makes every time that is measured now doubtful."""
    here = available_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > here + 0.5:
        said = f"{here:g} cores, and {load:.1f} processes that want them: times measured now are not to be trusted."
        yield Finding("load", "note", said, "Wait for the others, or compare with --no-timing and time later.")
    else:
        yield Finding("load", "ok", f"{here:g} cores, load {load:.1f}.")


def waiting() -> Iterator[Finding]:
    """Whether OpenMP's threads spin while they wait, which takes the cores from whoever shares them."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        yield Finding("waiting", "ok", "Threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE).")
        return
    set_to = f"OMP_WAIT_POLICY is {policy}" if policy else "OMP_WAIT_POLICY is not set"
    said = f"{set_to}: threads spin while they wait, and where processes share cores small work takes many times as long."
    fix = "export OMP_WAIT_POLICY=PASSIVE (before Python starts; `instar compare` does it itself)"
    yield Finding("waiting", "warning" if policy.upper() == "ACTIVE" else "note", said, fix)


def memory() -> Iterator[Finding]:
    """Memory that is left, of the machine or of the container."""
    total, left = _memory()
    if total is None or left is None:
        yield Finding("memory", "note", "How much memory there is cannot be read on this system.")
        return
    said = f"{left / _GIB:.1f} of {total / _GIB:.1f} GiB of memory are free."
    if left < 1 * _GIB:
        fix = "Close other programs, or compare with --jobs 1 and smaller batches."
        yield Finding("memory", "warning", f"{said} A run of a small model takes about one.", fix)
    else:
        yield Finding("memory", "ok", said)


def _memory() -> tuple[float | None, float | None]:
    """(total, left) in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {name: 1024.0 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total, left = table["MemTotal"], table["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None, None
    try:
        limit, used = float(_MEMORY_LIMIT.read_text()), float(_MEMORY_USED.read_text())
        return min(total, limit), min(left, max(0.0, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total, left


def cache() -> Iterator[Finding]:
    """Whether the cache folder, where data sets and kernels go, can be written to and has room."""
    place = datasets.cache()
    try:
        files.folder(place)
    except OutputError as error:
        fix = "export XDG_CACHE_HOME=FOLDER that can be"
        yield Finding("cache", "error", f"The cache folder cannot be written to: {error}", fix)
        return
    left = shutil.disk_usage(place).free
    if left < 2 * _GIB:
        said = f"{place} has {left / _GIB:.1f} GiB left; larger data sets and models will not fit."
        yield Finding("cache", "warning", said, "Make room, or export XDG_CACHE_HOME=FOLDER with more.")
    else:
        yield Finding("cache", "ok", f"{place} can be written to; {left / _GIB:.0f} GiB left.")


def data() -> Iterator[Finding]:
    """Whether INSTAR_DATA, where it is set, leads to a folder."""
    given = os.environ.get("INSTAR_DATA")
    if given and not Path(given).is_dir():
        fix = "unset INSTAR_DATA, or export INSTAR_DATA=FOLDER that is there"
        yield Finding("data", "error", f"INSTAR_DATA is {given}, which is no folder.", fix)
    elif given:
        yield Finding("data", "ok", f"Data sets are looked for in {given} first (INSTAR_DATA).")
    else:
        yield Finding("data", "ok", "Data sets are fetched once into the cache (INSTAR_DATA is not set).")
