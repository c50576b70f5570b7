"""Small grey images with a class each: digits inside scikit-learn, MNIST, or arrays of the user's own."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instar import extras
from instar.errors import DataError

MNIST = "images/mnist10k.npz"
"""10,000 digits of MNIST, under INSTAR_DATA."""
_MNIST_SHA256 = "d1ad8f605da887e893897749323a75019906cf2fe5c88a9369d564d7ef983213"
_LARGEST = 1 << 30  # bytes, unpacked


@dataclass(frozen=True)
class Images:
    """Grey values uint8 [N, height, width], and the place of each image's class among the names."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: list[str]


def images(data: str | None) -> Images:
    """scikit-learn's 1,797 digits of 8 × 8 pixels in 17 greys (None), MNIST ("mnist"), or an `.npz` file.

    A file holds `images`, uint8 [N, height, width], and `labels`, integers [N]. Raises DataError, MissingExtraError.
    """
    if data is None:
        found = extras.require("sklearn.datasets", "text").load_digits()
        return _checked("scikit-learn digits", found.images.astype(np.uint8), found.target)
    if data != "mnist":
        return _checked(Path(data).name, *_arrays(Path(data)))
    folder = os.environ.get("INSTAR_DATA")
    path = Path(folder or "") / MNIST
    if not folder or not path.is_file():
        raise DataError(
            f"MNIST is not fetched: set INSTAR_DATA to a folder that holds {MNIST}, or give an .npz file with the arrays images "
            "(uint8 [N, 28, 28]) and labels ([N])."
        )
    received = hashlib.sha256(path.read_bytes()).hexdigest()
    if received != _MNIST_SHA256:
        raise DataError(
            f"{path} is not the pinned file: SHA-256 {received}, expected {_MNIST_SHA256}. Give it as --data to use it."
        )
    return _checked("MNIST (10,000 digits)", *_arrays(path))


def _arrays(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """`images` and `labels` of a file; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LARGEST:
            raise DataError(f"{path} unpacks to {size} bytes; at most {_LARGEST} are read.")
        with np.load(path, allow_pickle=False) as stored:
            return stored["images"], stored["labels"]
    except KeyError as error:
        raise DataError(f"{path} has no array {error}; it must hold images and labels.") from error
    except DataError:
        raise
    except Exception as error:  # damaged bytes make numpy, zipfile and zlib raise almost anything
        raise DataError(f"{path} cannot be read as an .npz file of numbers: {error}") from error


def _checked(name: str, pixels: NDArray[np.generic], labels: NDArray[np.generic]) -> Images:
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and labels.dtype.kind in "iu" and labels.shape == pixels.shape[:1]
    if not fits or 0 in pixels.shape:
        raise DataError(
            f"{name}: images must be uint8 [N, height, width] and labels integers [N], none of them empty; received "
            f"{pixels.dtype} {list(pixels.shape)} and {labels.dtype} {list(labels.shape)}."
        )
    classes, places = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{name}: all images are of class {classes[0]}; there is nothing to tell apart.")
    return Images(name, pixels.astype(np.uint8), places.astype(np.int64), [str(label) for label in classes])
