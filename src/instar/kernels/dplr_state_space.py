r"""A state space whose matrix is diagonal plus a rank of one, with an input and an output for each channel.

    x'(t) = A x(t) + B u(t),   A = Λ - P P*,   Λ, P, B, x complex [N] for as many conjugate pairs

The bilinear rule keeps that shape, as (I - Δ/2 A)^{-1} follows from (I - Δ/2 Λ)^{-1} by Woodbury's identity:

    x_t = Ā x_{t-1} + b u_t,   Ā x = z x - q · 2 Re Σ_n l_n x_n,   y_t = 2 Re Σ_n c_n x_tn

so that a token costs O(N). In all, y is the convolution of u with K_j = c Ā^j b and what the state before the first token adds.
K has the generating function c̃ (I - ζ Ā)^{-1} b with c̃ = c (I - Ā^L), whose values at the L roots of unity are its Fourier
transform; Woodbury again makes them four Cauchy sums over 1 / (1 - ζ z_n). Krylov's powers Ā^{C i + j} give the same K.

Gu, Goel, Ré 2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396).
Legend: B batch, T time, D channels, N complex numbers of a channel; R = 2 N real ones in the dense tables.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.right_aligned import RightAligned

Form = Literal["auto", "recurrent", "cauchy", "krylov", "blocks"]
FORMS = get_args(Form)
BLOCK = 64
"""Tokens of a block: the state is known at its beginning, and within it a sequence may restart anywhere."""


class Discrete(NamedTuple):
    """Ā and b of every channel; complex [D, N] each."""

    z: Tensor
    q: Tensor
    l: Tensor  # noqa: E741 - as in the equation
    b: Tensor


def discretise(rate: Tensor, p: Tensor, b: Tensor, step: Tensor) -> Discrete:
    """The bilinear rule. rate: Λ; p, b: complex [D, N]; step: Δ [D], positive. Real parts of Λ must be negative."""
    half = step.unsqueeze(-1) / 2
    inverse = 1 / (1 - half * rate)  # of I - Δ/2 Λ
    left, right = p.conj() * inverse, p * inverse
    weight = half / (1 + half * _pair(p.conj() * right))
    return Discrete(2 * inverse - 1, 2 * weight * right, left, 2 * half * (inverse * b - weight * right * _pair(left * b)))


def dplr_state_space(
    u: Tensor,
    system: Discrete,
    c: Tensor,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
) -> tuple[Tensor, Tensor]:
    """The equations above.

    Args:
        u: [B, T, D], real. system: in complex128, as powers of Ā are taken. c: complex [D, N].
        state: x before the first token, complex [B, D, N]; None is zero.
        mask: bool [B, T], False leaves a token out. reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "cauchy" and "krylov" by Fourier transforms with the kernel from Cauchy sums or from
            powers, without resets; "blocks" of BLOCK tokens; "auto" the first for one token, the last with resets, else "krylov".
            Equal but for rounding.
    A number that is not finite spoils its channel from its token to the end of its sequence, in every form.

    Returns y [B, T, D] and x after the last token, in the precision of u. Raises ShapeError.
    O(T D (log T + N + N² / BLOCK)) time, and for "cauchy" O(T D N) memory; O(D N³ log BLOCK) for the powers of Ā in each call.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    if form in ("cauchy", "krylov") and reset is not None:
        raise ShapeError("A convolution reads across resets; leave the form to 'auto', or take 'blocks' or 'recurrent'.")
    B, T, D = u.shape
    if c.shape != system.z.shape or c.shape[0] != D:
        raise ShapeError(f"c and the system [D, N] of {D} channels expected; received {[*c.shape]} and {[*system.z.shape]}.")
    if state is not None and state.shape != (B, *c.shape):
        raise ShapeError(f"state [B, D, N] = {[B, *c.shape]} expected; received {[*state.shape]}.")
    kind = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    if T == 0 or form == "recurrent" or (form == "auto" and T == 1):
        start = c.new_zeros(B, *c.shape, dtype=kind) if state is None else state
        return recurrent(u, Discrete(*(part.to(kind) for part in system)), c.to(kind), start, mask, reset)
    rows = RightAligned(u, mask, reset)
    spoilt = rows.contain()
    inputs = rows.x.permute(2, 0, 1)  # [D, B, T]
    exact = powers_of(system, c, min(BLOCK, 1 << (T - 1).bit_length()))
    table = exact.to(u.dtype)
    if form == "blocks" or rows.segment is not None:
        y, x = _blocks(inputs, table, rows.starts())
    else:
        K = cauchy_kernel(system, c, exact, T) if form == "cauchy" else krylov_kernel(exact, T)
        length = 1 << (2 * T - 2).bit_length()  # at least 2 T - 1: the end does not wrap round to the beginning
        spectrum = torch.fft.rfft(inputs, n=length) * torch.fft.rfft(K.to(u.dtype), n=length).unsqueeze(1)
        y, x = torch.fft.irfft(spectrum, n=length)[..., :T], _end(inputs, table)
    y, x, free = y.permute(1, 2, 0), _complex(x).transpose(0, 1), None
    if spoilt is not None:
        y, x = y.masked_fill(spoilt, torch.nan), x.masked_fill(spoilt[:, -1:].mT, torch.nan)
    if state is not None:
        past = torch.full((B,), T, device=u.device) if rows.count is None else rows.count
        response, left = _free(_real(state.transpose(0, 1)), table, T, past)
        y, free = y + rows.free(response.permute(1, 2, 0)), _complex(left).transpose(0, 1)
    return rows.back(y), rows.end(x, free)


def recurrent(
    u: Tensor, system: Discrete, c: Tensor, x: Tensor, mask: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Token by token in O(N): the step of decoding. x complex [B, D, N] is the state before."""
    z, q, l, b = system  # noqa: E741 - as in the equation
    outputs = []
    for t in range(u.shape[1]):
        if reset is not None:
            x = torch.where(reset[:, t, None, None], torch.zeros_like(x), x)
        new = z * x - q * _pair(l * x) + b * u[:, t].unsqueeze(-1)
        x = new if mask is None else torch.where(mask[:, t, None, None], new, x)
        outputs.append(_pair(c * x).squeeze(-1))
    return (torch.stack(outputs, dim=1) if outputs else u), x


def dense(system: Discrete) -> tuple[Tensor, Tensor]:
    """Ā [D, R, R] and b [D, R] as real matrices, for states [Re x; Im x]."""
    z, q, l, b = system  # noqa: E741 - as in the equation
    top = torch.cat([torch.diag_embed(z.real), torch.diag_embed(-z.imag)], dim=2)
    bottom = torch.cat([torch.diag_embed(z.imag), torch.diag_embed(z.real)], dim=2)
    return torch.cat([top, bottom], dim=1) - _real(q).unsqueeze(2) * _reader(l).unsqueeze(1), _real(b)


class Powers(NamedTuple):
    """What blocks of C tokens need."""

    c: Tensor
    """[D, R]"""
    written: Tensor
    """Ā^j b, [D, R, C]"""
    read: Tensor
    """c Ā^{j+1}, [D, C, R]"""
    squares: list[Tensor]
    """Ā^(2^i), [D, R, R] each; the last leaps over a block."""

    @property
    def size(self) -> int:
        return self.written.shape[2]

    def rows(self, count: int) -> Tensor:
        """c Ā^{C i} for i < count, [D, count, R]."""
        found = [self.c.unsqueeze(1)]
        for _ in range(count - 1):
            found.append(found[-1] @ self.squares[-1])
        return torch.cat(found, dim=1)

    def to(self, dtype: torch.dtype) -> Powers:
        """The same numbers in another precision."""
        squares = [part.to(dtype) for part in self.squares]
        return Powers(self.c.to(dtype), self.written.to(dtype), self.read.to(dtype), squares)


def powers_of(system: Discrete, c: Tensor, size: int) -> Powers:
    """Tables of `size` tokens, a power of 2, by doubling: O(R³ log C) for each channel."""
    A, b = dense(system)
    c = _reader(c.to(system.z.dtype)).unsqueeze(1)
    written, read, squares = b.unsqueeze(2), c @ A, [A]
    while written.shape[2] < size:
        written = torch.cat([written, squares[-1] @ written], dim=2)
        read = torch.cat([read, read @ squares[-1]], dim=1)
        squares.append(squares[-1] @ squares[-1])
    return Powers(c.squeeze(1), written, read, squares)


def krylov_kernel(powers: Powers, T: int) -> Tensor:
    """K_j = c Ā^j b for j < T, [D, T], from powers of Ā."""
    return (powers.rows(-(-T // powers.size)) @ powers.written).flatten(1)[:, :T]


def cauchy_kernel(system: Discrete, c: Tensor, powers: Powers, T: int) -> Tensor:
    """The same from its generating function at the roots of unity."""
    z, q, l, b = system  # noqa: E741 - as in the equation
    n_blocks = -(-T // powers.size)
    L = n_blocks * powers.size
    cut = powers.rows(n_blocks + 1)  # c Ā^L is its last row
    c = c.to(z.dtype) - _complex(cut[:, -1]).conj() / 2
    angle = -2 * torch.pi / L * torch.arange(L // 2 + 1, dtype=z.real.dtype, device=z.device)
    root = torch.complex(angle.cos(), angle.sin())
    weights = torch.stack([c * b, c * q, l * b, l * q], dim=1)
    cauchy = 1 / (1 - torch.cat([z, z.conj()], dim=1).unsqueeze(2) * root)  # [D, R, L / 2 + 1]
    cb, cq, lb, lq = (torch.cat([weights, weights.conj()], dim=2) @ cauchy).unbind(1)
    return torch.fft.irfft(cb - root * cq * lb / (1 + root * lq), n=L)[:, :T]


def _blocks(u: Tensor, powers: Powers, starts: Tensor) -> tuple[Tensor, Tensor]:
    """From a state of zero, with starts bool [B, T]: in a block, inputs reach outputs that have as many starts before them."""
    D, B, T = u.shape
    size = powers.size
    n_blocks = -(-T // size)
    lack = n_blocks * size - T
    u = F.pad(u, (lack, 0)).reshape(D, B * n_blocks, size)
    begun = F.pad(starts, (lack, 0)).view(B * n_blocks, size).to(torch.int64).cumsum(1)
    distance = torch.arange(size, device=u.device) - torch.arange(size, device=u.device).unsqueeze(1)  # from row to column
    taps = krylov_kernel(powers, size)[:, distance.clamp(min=0)] * (distance >= 0)
    most = size if torch.compiler.is_compiling() else int(begun.max())
    y = torch.zeros_like(u)
    for k in range(most + 1):
        here = begun == k
        y = torch.where(here, torch.bmm(u.masked_fill(~here, 0.0), taps), y)  # what overflowed elsewhere stays there
    own = u.masked_fill(begun != begun[:, -1:], 0.0) @ powers.written.flip(2).mT
    before = _carry(own.view(D, B, n_blocks, -1), powers, (begun[:, -1] == 0).view(B, n_blocks, 1))
    earlier = torch.stack(before[:-1], dim=2).flatten(1, 2) @ powers.read.mT
    return (y + earlier.masked_fill(begun > 0, 0.0)).reshape(D, B, -1)[..., lack:], before[-1]


def _end(u: Tensor, powers: Powers) -> Tensor:
    """The state after u [D, B, T] from a state of zero, [D, B, R]."""
    D, B, T = u.shape
    n_blocks = -(-T // powers.size)
    u = F.pad(u, (n_blocks * powers.size - T, 0)).reshape(D, B * n_blocks, powers.size)
    return _carry((u @ powers.written.flip(2).mT).view(D, B, n_blocks, -1), powers, None)[-1]


def _carry(own: Tensor, powers: Powers, through: Tensor | None) -> list[Tensor]:
    """States before each block and after the last, [D, B, R] each, from what blocks write, [D, B, n, R]."""
    states, leap = [torch.zeros_like(own[:, :, 0])], powers.squares[-1].mT
    for k, written in enumerate(own.unbind(2)):
        passed = states[-1] @ leap
        states.append(written + (passed if through is None else torch.where(through[:, k], passed, torch.zeros_like(passed))))
    return states


def _free(x: Tensor, powers: Powers, T: int, past: Tensor) -> tuple[Tensor, Tensor]:
    """c Ā^{t+1} x for t < T, [D, B, T], and Ā^{past} x, [D, B, R]: x [D, B, R], past int64 [B]."""
    states, size = [x], powers.size
    for _ in range(-(-T // size)):
        states.append(states[-1] @ powers.squares[-1].mT)
    held = torch.stack(states, dim=2)
    response = (held[:, :, :-1].flatten(1, 2) @ powers.read.mT).view(*x.shape[:2], -1)[..., :T]
    place = (past // size).view(1, -1, 1, 1).expand(x.shape[0], -1, 1, x.shape[2])
    left = held.gather(2, place).squeeze(2)
    for i, square in enumerate(powers.squares[:-1]):
        left = torch.where(((past >> i) & 1 > 0).view(-1, 1), left @ square.mT, left)
    return response, left


def _pair(x: Tensor) -> Tensor:
    """2 Re Σ_n x_n, [..., 1]: the sum over both of each conjugate pair."""
    return 2 * x.sum(-1, keepdim=True).real


def _real(x: Tensor) -> Tensor:
    """[Re x; Im x]: complex [..., N] -> [..., R]."""
    return torch.cat([x.real, x.imag], dim=-1)


def _reader(x: Tensor) -> Tensor:
    """The row whose product with [Re y; Im y] is 2 Re Σ_n x_n y_n."""
    return torch.cat([2 * x.real, -2 * x.imag], dim=-1)


def _complex(x: Tensor) -> Tensor:
    """The inverse of `_real`."""
    return torch.complex(*(part.contiguous() for part in x.chunk(2, dim=-1)))
