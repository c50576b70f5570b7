"""Where and with what a run was made: recorded beside every number."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import instar


@functools.cache
def describe() -> dict[str, Any]:
    """Machine, operating system, versions and the library's commit. Imports no torch: what judges files needs none."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "instar": instar.__version__,
        "commit": _commit(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }
    if (torch := sys.modules.get("torch")) is not None:
        facts["torch"] = torch.__version__
        facts["blas"] = "mkl" if torch.backends.mkl.is_available() else "other"
        if torch.cuda.is_available():
            facts["cuda"] = {"device": torch.cuda.get_device_name(), "version": torch.version.cuda}
    return facts


def load() -> float | None:
    """The one-minute load average, where the system has one."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package is imported from, marked when it has changes; None for an installed wheel."""
    root = Path(instar.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        name = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--", "src"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
