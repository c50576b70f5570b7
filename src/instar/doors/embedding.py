"""Vectors from an endpoint's `/embeddings`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.doors.asking import Asking
from instar.doors.client import Client
from instar.doors.version import Progress
from instar.doors.wire import FailedError

Vector = NDArray[np.float32]


def embed(
    texts: Sequence[str], fields: dict[str, Any], client: Client, asking: Asking, batch: int, progress: Progress | None = None
) -> tuple[list[Vector | FailedError], NDArray[np.float64]]:
    """The unit vector of each text (FailedError where there is none), and its share of the seconds of its request.

    A request that is refused because of its content is made again text by text, so that one bad text costs no other.
    """

    def ask(part: int) -> tuple[list[Vector | FailedError], float]:
        chosen = texts[part * batch : (part + 1) * batch]
        begin = time.perf_counter()
        try:
            found: list[Vector | FailedError] = list(_request(chosen, fields, client))
        except FailedError as error:
            if error.retry or error.down or len(chosen) == 1:
                raise
            found = [_alone(text, fields, client) for text in chosen]
        return found, (time.perf_counter() - begin) / len(chosen)

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(min(done * batch, len(texts)), len(texts))

    vectors: list[Vector | FailedError] = []
    seconds: list[float] = []
    for part, answer in enumerate(asking.all(math.ceil(len(texts) / batch), ask, told)):
        count = len(texts[part * batch : (part + 1) * batch])
        vectors += [answer] * count if isinstance(answer, FailedError) else answer[0]
        seconds += [math.nan if isinstance(answer, FailedError) else answer[1]] * count
    return vectors, np.array(seconds)


def _alone(text: str, fields: dict[str, Any], client: Client) -> Vector | FailedError:
    try:
        return _request([text], fields, client)[0]
    except FailedError as error:
        if error.retry or error.down:
            raise
        return error


def _request(texts: Sequence[str], fields: dict[str, Any], client: Client) -> list[Vector]:
    def read(reply: Any) -> list[Vector]:
        try:
            rows = sorted(reply["data"], key=lambda row: row["index"])
            matrix = np.array([row["embedding"] for row in rows], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FailedError("the reply is not of the expected shape (data[].embedding, a list of numbers)") from error
        if matrix.ndim != 2 or len(matrix) != len(texts) or matrix.shape[1] == 0:
            raise FailedError(f"the reply holds vectors of shape {list(matrix.shape)} for {len(texts)} texts")
        with np.errstate(over="ignore"):  # an infinite length is refused below
            length = np.linalg.norm(matrix, axis=1, keepdims=True)
        if not np.isfinite(length).all() or not length.all():
            raise FailedError("the reply holds a vector that is zero or not finite")
        return list((matrix / length).astype(np.float32))

    return client.ask("/embeddings", {**fields, "input": list(texts)}, read)
