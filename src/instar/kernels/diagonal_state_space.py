r"""A diagonal state space, one input and output for each channel: the recurrence, the convolution, and blocks that restart.

    x_t = z x_{t-1} + b u_t,   y_t = 2 Re Σ_n c_n x_tn,   z = e^{log_z}, n complex numbers for each channel

They stand for as many conjugate pairs. In all, y is the convolution of u with K_l = 2 Re Σ_n c_n b_n z_n^l, and what the state
before the first token adds, 2 Re Σ_n c_n z_n^{t+1} x_n. Both are products with a Vandermonde matrix z^l, and so is the last
state, Σ_l z^{T-1-l} b u_l. With l = C i + j it takes 2 √T powers and a matrix product.

Gu, Gupta, Goel, Ré 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893).
Legend: B batch, T time, D channels, N complex numbers of a channel.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.right_aligned import RightAligned

Form = Literal["auto", "recurrent", "convolution", "blocks"]
FORMS = get_args(Form)
PART = 16384
"""Tokens of one Fourier transform: beyond, the state is carried on, so that time is linear in T."""
BLOCK = 128
"""Tokens of a block that may restart anywhere."""


def diagonal_state_space(
    u: Tensor,
    log_z: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
) -> tuple[Tensor, Tensor]:
    """The equations above.

    Args:
        u: [B, T, D], real. log_z, b, c: complex [D, N]; no |z| may exceed 1.
        state: x before the first token, complex [B, D, N]; None is zero.
        mask: bool [B, T], False leaves a token out. reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "convolution" by Fourier transforms of PART tokens, which takes no resets; "blocks" of
            BLOCK tokens; "auto" the first for one token, the third with resets, else the second. Equal but for rounding.
    A number that is not finite spoils its channel from its token to the end of its sequence, in every form.

    Returns y [B, T, D] and x after the last token. Raises ShapeError.
    O(T D (log PART + N)) time by convolution, O(T D (R BLOCK + N)) in blocks of at most R starts; O(T D) memory to train.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    if form == "convolution" and reset is not None:
        raise ShapeError("A convolution reads across resets; leave the form to 'auto', or take 'blocks' or 'recurrent'.")
    B, T, D = u.shape
    if log_z.shape != b.shape or b.shape != c.shape or log_z.shape[0] != D:
        raise ShapeError(
            f"log_z, b and c [D, N] of {D} channels expected; received {[*log_z.shape]}, {[*b.shape]}, {[*c.shape]}."
        )
    if state is not None and state.shape != (B, *b.shape):
        raise ShapeError(f"state [B, D, N] = {[B, *b.shape]} expected; received {[*state.shape]}.")
    if T == 0 or form == "recurrent" or (form == "auto" and T == 1):
        start = b.new_zeros(B, *b.shape) if state is None else state
        return recurrent(u, log_z, b, c, start, mask, reset)
    rows = RightAligned(u, mask, reset)
    spoilt = rows.contain()
    inputs = rows.x.permute(2, 0, 1)  # [D, B, T]
    if form == "blocks" or rows.segment is not None:
        y, x = _blocks(inputs, log_z, b, c, rows.starts())
    else:
        y, x = _convolution(inputs, log_z, b, c)
    y, x, free = y.permute(1, 2, 0), x.transpose(0, 1), None
    if spoilt is not None:
        y, x = y.masked_fill(spoilt, torch.nan), x.masked_fill(spoilt[:, -1:].mT, torch.nan)
    if state is not None:
        before = state.transpose(0, 1)  # [D, B, N]
        y = y + rows.free(_read(before * (c * log_z.exp()).unsqueeze(1), log_z, T).permute(1, 2, 0))
        past = torch.full((B,), T, device=u.device) if rows.count is None else rows.count
        free = state * (log_z * past.view(B, 1, 1)).exp()
    return rows.back(y), rows.end(x, free)


def recurrent(
    u: Tensor, log_z: Tensor, b: Tensor, c: Tensor, x: Tensor, mask: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Token by token: the oracle of the other forms, and the step of decoding. x complex [B, D, N] is the state before."""
    z, outputs = log_z.exp(), []
    for t in range(u.shape[1]):
        if reset is not None:
            x = torch.where(reset[:, t, None, None], torch.zeros_like(x), x)
        new = z * x + b * u[:, t].unsqueeze(-1)
        x = new if mask is None else torch.where(mask[:, t, None, None], new, x)
        outputs.append(2 * (c * x).sum(-1).real)
    return (torch.stack(outputs, dim=1) if outputs else u), x


def kernel(log_z: Tensor, b: Tensor, c: Tensor, T: int) -> Tensor:
    """K_l = 2 Re Σ_n c_n b_n z_n^l, [D, T]."""
    return _read((b * c).unsqueeze(1), log_z, T).squeeze(1)


def _convolution(u: Tensor, log_z: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """From a state of zero: u [D, B, T] -> y [D, B, T] and x [D, B, N]."""
    T = u.shape[-1]
    K = kernel(log_z, b, c, min(T, PART))
    x, outputs = None, []
    for part in u.split(PART, dim=-1):
        size = part.shape[-1]
        length = 1 << (2 * size - 2).bit_length()  # at least 2 size - 1: the end does not wrap round to the beginning
        spectrum = torch.fft.rfft(part, n=length) * torch.fft.rfft(K[:, :size], n=length).unsqueeze(1)
        y, written = torch.fft.irfft(spectrum, n=length)[..., :size], b.unsqueeze(1) * _write(part, log_z)
        if x is not None:
            y = y + _read(x * (c * log_z.exp()).unsqueeze(1), log_z, size)
            written = written + x * (log_z * size).exp().unsqueeze(1)
        x = written
        outputs.append(y)
    assert x is not None
    return torch.cat(outputs, dim=-1), x


def _blocks(u: Tensor, log_z: Tensor, b: Tensor, c: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """As `_convolution`, with starts bool [B, T]: in a block, inputs reach the outputs that have as many starts before them."""
    D, B, T = u.shape
    size = min(BLOCK, T)
    n_blocks = -(-T // size)
    lack = n_blocks * size - T
    u = F.pad(u, (lack, 0)).reshape(D, B * n_blocks, size)
    begun = F.pad(starts, (lack, 0)).view(B * n_blocks, size).to(torch.int64).cumsum(1)
    distance = torch.arange(size, device=u.device) - torch.arange(size, device=u.device).unsqueeze(1)  # from row to column
    taps = kernel(log_z, b, c, size)[:, distance.clamp(min=0)] * (distance >= 0)
    most = size if torch.compiler.is_compiling() else int(begun.max())
    y = torch.zeros_like(u)
    for k in range(most + 1):
        here = begun == k
        y = torch.where(here, torch.bmm(u.masked_fill(~here, 0.0), taps), y)  # what overflowed elsewhere stays there
    own = b.unsqueeze(1) * _write(u.masked_fill(begun != begun[:, -1:], 0.0), log_z)
    through = (begun[:, -1] == 0).view(B, n_blocks, 1)
    z, before = (log_z * size).exp().unsqueeze(1), [own.new_zeros(D, B, own.shape[-1])]
    for written, passes in zip(own.view(D, B, n_blocks, -1).unbind(2), through.unbind(1), strict=True):
        before.append(written + torch.where(passes, z * before[-1], torch.zeros_like(written)))
    read = torch.stack(before[:-1], dim=2).flatten(1, 2) * (c * log_z.exp()).unsqueeze(1)
    y = y + _read(read, log_z, size).masked_fill(begun > 0, 0.0)
    return y.reshape(D, B, -1)[..., lack:], before[-1]


def _read(weights: Tensor, log_z: Tensor, T: int) -> Tensor:
    """2 Re Σ_n w_n z_n^l for l < T: weights complex [D, M, N] -> [D, M, T]."""
    D, M, _ = weights.shape
    coarse, fine = _powers(log_z, T, M)
    left = (weights.unsqueeze(2) * coarse.unsqueeze(1)).conj().resolve_conj()  # [D, M, A, N]: Re w z is w̄ · z of pairs
    return 2 * torch.bmm(_pairs(left).flatten(1, 2), _pairs(fine).mT).view(D, M, -1)[..., :T]


def _write(v: Tensor, log_z: Tensor) -> Tensor:
    """Σ_l z^{T-1-l} v_l: v real [D, M, T] -> complex [D, M, N]."""
    D, M, T = v.shape
    coarse, fine = (part.flip(1) for part in _powers(log_z, T, M))
    A, C = coarse.shape[1], fine.shape[1]
    v = F.pad(v, (A * C - T, 0)).reshape(D, M * A, C)
    return (torch.view_as_complex(torch.bmm(v, _pairs(fine)).view(D, M, A, -1, 2)) * coarse.unsqueeze(1)).sum(2)


def _pairs(z: Tensor) -> Tensor:
    """Complex [..., N] as real [..., 2 N]."""
    return torch.view_as_real(z).flatten(-2)


def _powers(log_z: Tensor, T: int, M: int) -> tuple[Tensor, Tensor]:
    """z^{C a} [D, A, N] and z^j [D, C, N], whose products are all powers below A C, at least T.

    C powers and, for each of M rows, A products: C near √(M T) is the least work.
    """
    C = min(1 << ((M * T).bit_length() // 2), 1 << (T - 1).bit_length())
    A = -(-T // C)
    steps = torch.arange(max(A, C), device=log_z.device, dtype=log_z.real.dtype).unsqueeze(1)
    exponents = torch.cat([C * steps[:A], steps[:C]])
    size, angle = (log_z.real.unsqueeze(1) * exponents).exp(), log_z.imag.unsqueeze(1) * exponents
    powers = torch.complex(size * angle.cos(), size * angle.sin())  # 30 times faster than torch's complex exp
    return powers[:, :A], powers[:, A:]
