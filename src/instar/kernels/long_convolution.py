r"""A causal depthwise convolution with a filter as long as the sequence, behind a cache of all earlier inputs.

    y_t = Σ_{l ≤ t} h_l ∘ u_{t-l}, over the real tokens of the present sequence

An arbitrary filter has no recurrence of a constant state: what later tokens need is every input so far.

Romero, Kuzina, Bekkers, Tomczak, Hoogendoorn 2021 (CKConv, arXiv 2102.02611); Poli et al. 2023 (Hyena, 2302.10866).
Legend: B batch, T time, C cached columns, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.right_aligned import RightAligned


def long_convolution(
    u: Tensor, taps: Tensor, past: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equation above by Fourier transforms; one token by a sum.

    Args:
        u: [B, T, D], float32 or float64. taps: h [≥ C + T, D]. past: inputs before u, [B, C, D], the newest last; zeros stand for
            none. mask: bool [B, T], False leaves a token out. reset: bool [B, T], True forgets all inputs before that token.

    Returns y [B, T, D] and all inputs [B, C + T, D], real ones last. Raises ShapeError. O(S (C + T) D log(C + T)) time with at
    most S sequences in a row: each is transformed by itself. A number that is not finite spoils its channel from its token to
    the end of its sequence.
    """
    B, T, D = u.shape
    C = past.shape[1]
    if past.shape != (B, C, D) or taps.dim() != 2 or taps.shape[0] < C + T or taps.shape[1] != D:
        raise ShapeError(
            f"Expected past [{B}, C, {D}] and taps [≥ C + {T}, {D}]; received {list(past.shape)} and {list(taps.shape)}."
        )
    if T == 0:
        return u, past
    before = u.new_zeros(B, C, dtype=torch.bool)
    rows = RightAligned(
        torch.cat([past.to(u.dtype), u], dim=1),
        None if mask is None else torch.cat([~before, mask], dim=1),
        None if reset is None else torch.cat([before, reset], dim=1),
    )
    inputs = rows.x
    if rows.segment is not None and reset is not None:
        inputs = inputs.masked_fill((rows.segment != reset.sum(1, keepdim=True)).unsqueeze(-1), 0.0)
    if T == 1:
        return (inputs * taps[: C + 1].flip(0)).sum(1, keepdim=True), inputs
    spoilt = rows.contain()
    if rows.segment is None:
        y = _transformed(rows.x, taps, T)
    else:
        y = torch.zeros_like(rows.x)
        most = T if torch.compiler.is_compiling() else int(rows.segment.max())
        for k in range(most + 1):
            here = (rows.segment == k).unsqueeze(-1)
            y = torch.where(
                here, _transformed(rows.x.masked_fill(~here, 0.0), taps, T), y
            )  # what overflowed elsewhere stays there
    if spoilt is not None:
        y = y.masked_fill(spoilt, torch.nan)
    return rows.back(y)[:, C:], inputs


def _transformed(u: Tensor, taps: Tensor, last: int) -> Tensor:
    """The convolution of u [B, N, D] at its last columns; the others, which nobody reads, are zero."""
    N = u.shape[1]
    length = 1 << (N + last - 2).bit_length()  # at least N + last - 1: what wraps round ends before the last columns
    spectrum = torch.fft.rfft(u.mT, n=length) * torch.fft.rfft(taps[:N].mT, n=length)
    return F.pad(torch.fft.irfft(spectrum, n=length)[..., N - last : N], (N - last, 0)).mT
