"""Kernels in C++ that are built ahead, by one command: found, checked and loaded here. Without them everything works, slower.

A library is built by `build` alone (`instar kernels build`), never at install, import or first use. It lies in the cache folder
under the hash of its source, the compiler's arguments, this processor and this torch build (whose OpenMP runtime it shares), so
that what was made for another machine is not found rather than run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from instar import files
from instar.data import datasets
from instar.errors import BuildError, InstarError

SOURCE = Path(__file__).with_name("decode_attention.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
MANIFEST = "manifest.json"
VERSION = 2
"""Of the interface between the library and its caller; the library says its own."""
_log = logging.getLogger("instar")
_taken: dict[Path, ctypes.CDLL] = {}
"""Libraries in use, by manifest."""


def folder() -> Path:
    """Where this machine's library lies, or would lie."""
    return datasets.cache() / "kernels" / _key()


@functools.cache
def _key() -> str:
    facts = [SOURCE.read_text("utf-8"), " ".join(FLAGS), torch.__version__, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's name and what it can do."""
    wanted = ("model name", "flags", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(wanted))


def compiler() -> list[str]:
    """The C++ compiler as a command: the environment's CXX, or g++. Raises BuildError where there is none."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        raise BuildError(f"There is no C++ compiler '{command[0]}'. Install g++ 12 or newer (or set CXX), and build again.")
    return command


def build() -> Path:
    """Compile the library, try it in a process of its own, and put it in the cache at once; the path of the library.

    Raises BuildError where the compiler is missing or fails, or where the result does not compute what the torch form does
    (nothing is then put anywhere), and OutputError.
    """
    target = files.folder(folder())
    target.chmod(0o755)  # whatever the umask: a library that others can write to is refused
    with tempfile.TemporaryDirectory(prefix=".build.", dir=target) as room:
        made = Path(room) / "library.so"
        command = [*compiler(), *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = f"{shlex.join(command)}\n{done.stderr.strip()[-2000:]}"
            raise BuildError(f"The compiler failed ({done.returncode}); g++ 12 or newer is needed. {said}")
        trial = "import sys; from instar.kernels import decode_attention_compiled as c; c.try_out(sys.argv[1])"
        tried = subprocess.run([sys.executable, "-c", trial, str(made)], capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            raise BuildError(f"The library was built and does not work here ({tried.returncode}): {tried.stderr.strip()[-2000:]}")
        content = made.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    path = target / f"decode_attention-{sha256[:12]}.so"
    files.write(path, content)
    facts = {"library": path.name, "sha256": sha256, "command": shlex.join(command[:-3]), "torch": torch.__version__}
    files.write_json(target / MANIFEST, {**facts, "built": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    for old in target.glob("decode_attention-*.so"):
        if old != path:
            old.unlink(missing_ok=True)
    _open.cache_clear()
    _taken.pop(target / MANIFEST, None)
    return path


def checked(place: Path) -> Path | None:
    """The library of a folder; None where none was built. Raises BuildError for one that must not be loaded.

    Loading runs code, so a library is taken only from files that nobody else can write, and only with the bytes that were built.
    """
    manifest = place / MANIFEST
    if not manifest.exists():
        return None
    try:
        said: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
        name, sha256 = str(said["library"]), str(said["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{manifest} cannot be read ({type(error).__name__}).") from error
    path = place / Path(name).name
    for part in (place, manifest, path):
        try:
            found = part.lstat()
        except OSError as error:
            raise BuildError(f"{part} is missing.") from error
        if stat.S_ISLNK(found.st_mode) or (hasattr(os, "getuid") and found.st_uid not in (os.getuid(), 0)):
            raise BuildError(f"{part} belongs to somebody else, or is a link.")
        if found.st_mode & 0o022:
            raise BuildError(f"{part} can be written by other users (mode {stat.S_IMODE(found.st_mode):o}).")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise BuildError(f"{path} is not the file that was built.")
    return path


def load(path: Path) -> ctypes.CDLL:
    """The library of a file that can be trusted. Raises BuildError for one that is broken or of another version."""
    try:
        library = ctypes.CDLL(str(path))
        library.instar_decode_version.restype = ctypes.c_int64
        version = library.instar_decode_version()
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded: {error}.") from error
    if version != VERSION:
        raise BuildError(f"{path} has version {version} of the interface; version {VERSION} is needed.")
    library.instar_decode.restype = None
    return library


def library() -> ctypes.CDLL | None:
    """The library of this machine, or None where it is absent, or, with one warning, refused.

    One that another process builds meanwhile is taken at the next call: whoever follows the hint need not begin again.
    """
    manifest = _manifest(_key(), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))
    if manifest not in _taken:  # to ask the disk each time would take as long as to read a short sequence
        try:
            found = _open(manifest.parent, manifest.stat().st_mtime_ns)
        except OSError:
            return None
        if found is None:
            return None
        _taken[manifest] = found
    return _taken[manifest]


@functools.cache
def _manifest(*_: str | None) -> Path:
    """That of `folder`, by all that it depends on."""
    return folder() / MANIFEST


@functools.cache
def hint() -> None:
    """Say once a process that a library could be built."""
    if status()[0] == "absent":
        _log.warning("Decoding runs without its compiled kernel. `instar kernels build` builds it, once for this machine.")


@functools.cache
def _open(place: Path, built: int) -> ctypes.CDLL | None:
    try:
        path = checked(place)
        if path is not None:
            return load(path)
    except InstarError as error:
        _log.warning("The compiled kernel is not used: %s Build it anew with `instar kernels build`.", error)
    return None


def status() -> tuple[str, str]:
    """(ready | absent | refused, what there is to say about it)."""
    place = folder()
    try:
        path = checked(place)
        if path is None:
            others = len([other for other in place.parent.glob("*") if (other / MANIFEST).exists()])
            more = f" ({others} of other machines, sources or torch builds)" if others else ""
            return "absent", f"nothing in {place}{more}; `instar kernels build` builds it, and until then decoding is slower"
        load(path)
    except InstarError as error:
        return "refused", f"{error} Build it anew with `instar kernels build`."
    return "ready", str(path)
