"""Recordings of words with what is said in each and by whom: spoken digits, or files of the user's own."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly

from instar.data import datasets
from instar.errors import DataError

FSDD = "speech/fsdd_recordings.zip"
"""The Free Spoken Digit Dataset, under INSTAR_DATA or in the cache: 3,000 digits, 6 speakers. CC BY-SA 4.0."""
FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/26eb9aaf76e81b692f806f9140c2d2777410d7a1.zip"
FSDD_SHA256 = "53998afdef6c8d68266bf9ceb651f330a685545f8d0f5334b9e3cd60f5998d76"
"""Over names and bytes of the recordings: an archive is packed anew at every download, what is in it stays."""
RULE = (
    "Recordings are found as LABEL/NAME.wav, where the speaker is what stands before the first '_' of every NAME (unknown where "
    "one has none), or, all in one folder, as LABEL_SPEAKER_NUMBER.wav; names that begin with '.' or '_' are left out."
)
RATE = 8000
"""Samples a second; recordings at other rates are resampled."""
_FLAT = re.compile(r"([^_]+)_(.+)_(\d+)", re.S)
_LARGEST = 1 << 30  # bytes of all recordings
_SLOWEST, _FASTEST = 1_000, 768_000


@dataclass(frozen=True)
class Recordings:
    """Waves float32 in ±1 at RATE, the place of each one's class among the names, and who spoke (None: nobody knows)."""

    name: str
    waves: list[NDArray[np.float32]]
    labels: NDArray[np.int64]
    classes: list[str]
    speakers: list[str] | None
    facts: dict[str, Any] = field(default_factory=dict)
    """How many were resampled, and how many had several channels, of which the mean is taken."""


def recordings(data: str | None) -> Recordings:
    """Spoken digits (None), or a folder or `.zip` of wav files of the user's own, found by RULE.

    Raises DataError: nothing there, files that cannot be read (which and why), fewer than two labels.
    """
    if not isinstance(data, str | None):
        raise DataError(f"Recordings are read from one folder or one .zip file; received {data}. {RULE}")
    path = _digits() if data is None else Path(data)
    files = _zipped(path) if path.is_file() else _folder(path)
    if data is None:
        files = {name: content for name, content in files.items() if "recordings" in PurePosixPath(name).parts}
        received = content_hash(files)
        if received != FSDD_SHA256:
            raise DataError(
                f"{path} does not hold the pinned recordings: SHA-256 over their names and bytes {received}, expected "
                f"{FSDD_SHA256}. Give it as --data to use it."
            )
    names = list(files)
    labels, speakers = said(names, str(path))
    waves, facts = [], {"resampled": 0, "of_several_channels": 0}
    for name in names:
        wave, rate, channels = _wave(files[name], f"{path}: {name}")
        facts["resampled"] += rate != RATE
        facts["of_several_channels"] += channels > 1
        waves.append(wave)
    classes, places = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{path}: all recordings have the label '{classes[0]}'; there is nothing to tell apart. {RULE}")
    title = "Free Spoken Digit Dataset" if data is None else path.name
    return Recordings(title, waves, places.astype(np.int64), [str(c) for c in classes], speakers, facts)


def said(names: Iterable[str], where: str) -> tuple[list[str], list[str] | None]:
    """Label and speaker of each recording, by RULE. Raises DataError."""
    paths = [PurePosixPath(name) for name in names]
    if len({path.parent.name for path in paths}) > 1:
        above = {folder for path in paths for folder in path.parent.parents}
        if stray := [path for path in paths if path.parent in above]:
            raise DataError(f"{where}: '{stray[0]}' stands beside folders of recordings; what is spoken in it is unclear. {RULE}")
        stems = [path.stem.partition("_") for path in paths]
        known = all(speaker and rest for speaker, _, rest in stems)
        return [path.parent.name for path in paths], [speaker for speaker, _, _ in stems] if known else None
    found = []
    for path in paths:
        match = _FLAT.fullmatch(path.stem)
        if match is None:
            alone = f", and all recordings are in the folder '{path.parent.name}'" if path.parent.name else ""
            raise DataError(f"{where}: nothing says what is spoken in '{path.name}'{alone}. {RULE}")
        found.append((match[1], match[2]))
    return [label for label, _ in found], [speaker for _, speaker in found]


def content_hash(files: dict[str, bytes]) -> str:
    """SHA-256 over the last parts of the names, in their order, and the bytes."""
    total = hashlib.sha256()
    for name, content in sorted((PurePosixPath(name).name, content) for name, content in files.items()):
        total.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return total.hexdigest()


def _digits() -> Path:
    for folder in (os.environ.get("INSTAR_DATA"), str(datasets.cache())):
        if folder and (path := Path(folder) / FSDD).is_file():
            return path
    path = datasets.cache() / FSDD
    raise DataError(
        f"The spoken digits are not fetched (10 MB, CC BY-SA 4.0). Fetch them:\n"
        f"  curl -L --create-dirs -o {path} {FSDD_URL}\n"
        f"or set INSTAR_DATA to a folder that holds them as {FSDD}, or give a folder of your own wav files as --data. {RULE}"
    )


def _folder(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor a .zip file. {RULE}")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _meant(path.relative_to(folder).as_posix())]
    _bounded(folder, sum(path.stat().st_size for path in paths), len(paths))
    try:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error}") from error


def _zipped(path: Path) -> dict[str, bytes]:
    """What an archive holds; nothing of it is written to a disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                place = PurePosixPath(entry.filename)
                if place.is_absolute() or ".." in place.parts or "\\" in entry.filename or ":" in entry.filename:
                    raise DataError(f"{path} holds '{entry.filename}', a name that leads out of the archive; it is not read.")
            entries = sorted((entry for entry in entries if _meant(entry.filename)), key=lambda entry: entry.filename)
            _bounded(path, sum(entry.file_size for entry in entries), len(entries))
            return {entry.filename: archive.read(entry) for entry in entries}
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .zip file: {error}") from error


def _meant(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(".wav") and not any(part[0] in "._" for part in parts)


def _bounded(where: Path, size: int, count: int) -> None:
    if count == 0:
        raise DataError(f"{where} holds no wav file. {RULE}")
    if size > _LARGEST:
        raise DataError(f"{where} holds {size} bytes of recordings; at most {_LARGEST} are read.")


def _wave(content: bytes, where: str) -> tuple[NDArray[np.float32], int, int]:
    """One channel at RATE, and the rate and the channels that it had."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as error:  # what scipy raises for bytes that are no wav file is of many kinds
        raise DataError(f"{where}: cannot be read as a wav file: {error or type(error).__name__}") from error
    short = [str(w.message) for w in said if re.search(r"prematurely|Incomplete", str(w.message))]
    if short:
        raise DataError(f"{where}: is truncated: {short[0]}")
    if samples.size == 0:
        raise DataError(f"{where}: holds no sample.")
    if not _SLOWEST <= rate <= _FASTEST:
        raise DataError(f"{where}: has {rate} samples a second; {_SLOWEST} to {_FASTEST} are read.")
    wave = samples.astype(np.float64)
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        wave = (wave - (half if samples.dtype.kind == "u" else 0)) / half
    if not np.isfinite(wave).all():
        raise DataError(f"{where}: holds samples that are not finite.")
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    if channels > 1:
        wave = wave.mean(axis=1)
    wave = wave.reshape(-1)
    if rate != RATE:
        common = gcd(rate, RATE)
        wave = resample_poly(wave, RATE // common, rate // common)
    return wave.astype(np.float32), rate, channels
