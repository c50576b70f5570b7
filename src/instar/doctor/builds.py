"""torch, torchvision and the compiled kernels: whether they load, and whether they are made for each other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instar.doctor.finding import Finding
from instar.doctor.machine import available_cores
from instar.doctor.trying import tried

_CPU_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cpu"
_TORCH = """
import json, os, torch
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
names = {line.split("/")[-1].split("-")[0].split(".")[0] for line in maps.splitlines()
         if any(s in line for s in ("libgomp", "libiomp", "libomp"))}
x = torch.ones(64, 64)
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.is_available(),
    "mkl": torch.backends.mkl.is_available(), "capability": torch.backends.cpu.get_cpu_capability(),
    "threads": torch.get_num_threads(), "openmp": sorted(names), "sum": float((x @ x).sum())}))
"""


def torch() -> Iterator[Finding]:
    """Whether torch works, how it was built, and how many threads it takes."""
    found, why = tried(_TORCH)
    if found is None or found["sum"] != 64.0**3:
        said = f"torch cannot be imported and used: {why}" if found is None else "torch multiplies matrices wrongly."
        yield Finding("torch", "error", said, f"{_CPU_TORCH} (or the build for your GPU)")
        return
    yield from _build(found)
    yield from _threads(found)


def _build(found: dict[str, Any]) -> Iterator[Finding]:
    gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    kind = f"CUDA {found['cuda']}" if found["cuda"] else "CPU"
    said = f"torch {found['version']}, {kind} build, {found['capability']}, {'MKL' if found['mkl'] else 'no MKL'}."
    if gpu and not found["gpu"]:
        reason = "its CPU build cannot use it" if not found["cuda"] else "torch does not see it: driver and build may not fit"
        fix = "Install the build for your driver: https://pytorch.org/get-started/locally/"
        yield Finding("torch", "warning", f"{said} This machine has an NVIDIA GPU, and {reason}.", fix)
    elif found["cuda"] and not gpu:
        fix = f"To save gigabytes of disk: {_CPU_TORCH}"
        yield Finding("torch", "note", f"{said} There is no GPU here.", fix)
    else:
        yield Finding("torch", "ok", said)


def _threads(found: dict[str, Any]) -> Iterator[Finding]:
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores, threads = available_cores(), max(found["threads"], int(wanted) if wanted.isdecimal() else 0)
    if threads > cores:
        fix = f"export OMP_NUM_THREADS={max(1, int(cores))}"
        said = f"{threads} threads are set for torch and there are {cores:g} cores for it: they wait for each other."
        yield Finding("threads", "warning", said, fix)
    else:
        yield Finding("threads", "ok", f"torch takes {threads} of {cores:g} cores.")
    if len(found["openmp"]) > 1:
        fix = "Keep packages of one source (all of pip or all of conda); never set KMP_DUPLICATE_LIB_OK."
        said = f"torch loads several OpenMP runtimes ({', '.join(found['openmp'])}), which may crash or crawl."
        yield Finding("OpenMP", "warning", said, fix)


def torchvision() -> Iterator[Finding]:
    """torchvision of another build than torch's breaks transformers, peft, timm and more at import."""
    if importlib.util.find_spec("torchvision") is None:
        yield Finding("torchvision", "ok", "torchvision is not installed; nothing here needs it.")
        return
    found, why = tried("import json, torchvision; print(json.dumps(torchvision.__version__))")
    if found is None:
        said = f"torchvision cannot be imported ({why}), and what imports it on the way fails too: transformers, peft, timm."
        yield Finding("torchvision", "error", said, f"pip uninstall torchvision, or install the one made for torch {_version()}")
    else:
        yield Finding("torchvision", "ok", f"torchvision {found} fits torch.")


def kernels() -> Iterator[Finding]:
    """The compiled kernels, which everything works without."""
    found, why = tried("import json; from instar.kernels import native; print(json.dumps(native.status()))")
    if found is None:
        yield Finding("kernels", "warning", f"The compiled kernels cannot be looked at: {why}", "instar kernels build")
    elif found[0] == "ready":
        yield Finding("kernels", "ok", "The compiled kernels are ready.")
    elif found[0] == "refused":
        yield Finding("kernels", "warning", f"The compiled kernels are refused: {found[1]}", "instar kernels build")
    elif shutil.which((os.environ.get("CXX") or "g++").split()[0]) is None:
        said = "No compiled kernels: decoding is slower, with the same results. There is no C++ compiler either."
        yield Finding("kernels", "note", said, "Install g++ 12 or newer, then: instar kernels build")
    else:
        said = "No compiled kernels: decoding is slower, with the same results."
        yield Finding("kernels", "note", said, "instar kernels build")


def _version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
