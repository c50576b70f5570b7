"""Log-mel frames of a wave: the logarithm of its power in bands that lie as pitch is heard, every ten milliseconds.

Davis, Mermelstein 1980, "Comparison of parametric representations for monosyllabic word recognition". The mel of f Hz is
2595 log10(1 + f / 700).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

WINDOW, HOP = 0.032, 0.010
"""Seconds that a frame reads, and between the beginnings of two."""
_RANGE = 1e-5
"""Power under the loudest so far, 50 dB below it, that is not told from silence."""


def log_mel(wave: NDArray[np.float32], rate: int, bands: int) -> NDArray[np.float32]:
    """log(p_tb / max over s ≤ t and bands of p_s + 1e-5), p the power of band b in frame t, [T, bands], of a wave [N].

    rate: samples a second. Frame t reads WINDOW from t · HOP on, and how loud it was before, so that frames can be made as sound
    arrives, and how near the microphone stands does not matter. The last frame is filled up with silence. O(N log WINDOW).
    """
    size, hop = round(WINDOW * rate), round(HOP * rate)
    count = 1 + -(-max(0, len(wave) - size) // hop)
    padded = np.zeros((count - 1) * hop + size, dtype=np.float64)
    padded[: len(wave)] = wave[: len(padded)]
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size + 1)[:-1]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 / size
    banded = power @ filters(rate, bands).T
    loudest = np.maximum.accumulate(banded.max(1, keepdims=True))
    return np.log(banded / np.maximum(loudest, np.finfo(np.float64).tiny) + _RANGE).astype(np.float32)


@cache
def filters(rate: int, bands: int) -> NDArray[np.float64]:
    """Triangles [bands, WINDOW · rate / 2 + 1] whose corners are spread evenly in mel from 0 to half the rate; each sums to 1."""
    size = round(WINDOW * rate)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    at = np.fft.rfftfreq(size, 1 / rate)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    found = np.maximum(0, np.minimum((at - left) / (middle - left), (right - at) / (right - middle)))
    narrow = found.sum(1) == 0  # between two bins: the nearest one
    found[narrow, np.abs(at - middle).argmin(1)[narrow]] = 1
    return found / found.sum(1, keepdims=True)
