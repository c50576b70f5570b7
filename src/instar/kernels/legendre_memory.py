r"""The Legendre memory: the last θ inputs as coefficients of Legendre polynomials, which a linear system keeps up to date.

    θ m'(t) = A m(t) + B u(t),   A_ij = (2i + 1) (-1 if i < j else (-1)^{i-j+1}),   B_i = (2i + 1) (-1)^i
    u(t - r θ) ≈ Σ_i P_i(2r - 1) m_i(t),   0 ≤ r ≤ 1

With a step of one token, m_t = Ā m_{t-1} + B̄ u_t, or m = u convolved with H_l = Āˡ B̄: by a Fourier transform of the sequence, or
in blocks, where windows of u meet H in one matrix product, and powers of Ā, by doubling, bring in what came before the block.

Voelker, Kajić, Eliasmith 2019, "Legendre Memory Units"; the parallel form is that of Chilkuri, Eliasmith 2021, "Parallelizing
Legendre Memory Unit Training" (arXiv 2102.11417). Legend: B batch, T time, H memories, O order.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.right_aligned import RightAligned

Rule = Literal["zoh", "forward", "backward", "bilinear"]
Form = Literal["auto", "recurrent", "fourier", "blocks"]
RULES, FORMS = get_args(Rule), get_args(Form)
DOUBLINGS = 6
BLOCK = 2**DOUBLINGS
"""Tokens of a block."""


class LegendreSystem(NamedTuple):
    """A discretised memory, float64: rounding Ā before its powers are taken loses more than float32 does."""

    squares: Tensor
    """Ā^(2^k), k = 0 … DOUBLINGS, [DOUBLINGS + 1, O, O]."""
    taps: Tensor
    """H_l = Āˡ B̄, l < BLOCK, [BLOCK, O]."""


def continuous(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A / θ [O, O] and B / θ [O], float64, on the CPU whatever the default device: they are numbers of a design, no weights."""
    i = torch.arange(order, dtype=torch.float64, device="cpu")
    row, column = i.unsqueeze(1), i.unsqueeze(0)
    scale = (2 * i + 1) / theta
    A = torch.where(row < column, -1.0, (-1.0) ** (row - column + 1))
    return A * scale.unsqueeze(1), scale * (-1.0) ** i


def discretise(A: Tensor, B: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Ā and B̄ for steps of 1: zero-order hold, forward or backward Euler, or bilinear (Tustin)."""
    one = torch.eye(len(A), dtype=A.dtype, device=A.device)
    if rule == "zoh":  # exp [[A, B], [0, 0]] = [[e^A, A⁻¹ (e^A - 1) B], [0, 1]]
        both = torch.linalg.matrix_exp(F.pad(torch.cat([A, B.unsqueeze(1)], dim=1), (0, 0, 0, 1)))
        return both[:-1, :-1], both[:-1, -1]
    if rule == "forward":
        return one + A, B
    if rule == "backward":
        return torch.linalg.inv(one - A), torch.linalg.solve(one - A, B)
    return torch.linalg.solve(one - A / 2, one + A / 2), torch.linalg.solve(one - A / 2, B)


def system(order: int, theta: float, rule: Rule) -> LegendreSystem:
    """The memory of `order` coefficients over a window of `theta` tokens.

    Raises ShapeError for impossible sizes, and where the rule makes the memory grow without end (forward Euler, short windows).
    """
    if order < 1 or not 0 < theta < math.inf or rule not in RULES:
        raise ShapeError(
            f"order must be at least 1, theta positive and finite, and the rule one of {', '.join(RULES)}; "
            f"received {order}, {theta} and '{rule}'."
        )
    A_bar, B_bar = discretise(*continuous(order, theta), rule)
    radius = float(torch.linalg.eigvals(A_bar).abs().max()) if rule == "forward" else 0.0  # the others keep what is stable so
    if radius >= 1:
        raise ShapeError(
            f"Under the rule '{rule}' a memory of order {order} over {theta:g} tokens grows without end (spectral radius "
            f"{radius:.3g}); take 'zoh' or 'bilinear', fewer coefficients or a longer window."
        )
    squares = [A_bar]
    for _ in range(DOUBLINGS):
        squares.append(squares[-1] @ squares[-1])
    return LegendreSystem(torch.stack(squares), _respond(B_bar.unsqueeze(0), torch.stack(squares), BLOCK)[0])


def decoder(order: int, delays: Tensor) -> Tensor:
    """P_i(2r - 1) for each delay r in units of θ, [len(delays), O]: times m it gives u(t - r θ)."""
    x = 2 * delays.to(torch.float64) - 1
    rows = [torch.ones_like(x), x]
    for i in range(1, order - 1):
        rows.append(((2 * i + 1) * x * rows[i] - i * rows[i - 1]) / (i + 1))
    return torch.stack(rows[:order], dim=1)


def legendre_memory(
    u: Tensor,
    memory: LegendreSystem,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
) -> tuple[Tensor, Tensor]:
    """The memories of u [B, T, H] after each token, [B, T, H, O], and after the last, [B, H, O].

    Args:
        state: before the first token, [B, H, O]; None is zero.
        mask: bool [B, T], False leaves a token out. reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "fourier", one transform of the sequence, from a state of zero and without resets;
            "blocks" of BLOCK tokens; "auto" the first for one token, else blocks. Equal but for rounding.

    Raises ShapeError. O(T H O (BLOCK + O)) time in blocks, O(T H O log T) by Fourier transforms; O(T H (O + BLOCK)) memory.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    if form == "fourier" and not (state is None and reset is None):
        raise ShapeError("One transform starts from a state of zero and reads across resets; take 'auto' or 'blocks'.")
    B, T, H = u.shape
    squares, taps = (part.to(u) for part in memory)
    if state is not None and state.shape != (B, H, taps.shape[1]):
        raise ShapeError(f"state [B, H, O] = {[B, H, taps.shape[1]]} expected; received {[*state.shape]}.")
    if T == 0 or form == "recurrent" or (form == "auto" and T == 1):
        start = u.new_zeros(B, H, taps.shape[1]) if state is None else state
        return recurrent(u, squares[0], taps[0], start, mask, reset)
    rows = RightAligned(u, mask, reset)
    m = _fourier(rows.x, memory) if form == "fourier" else _blocks(rows, squares, taps, state)
    kept = None  # rows without a real token
    if state is not None and rows.count is not None:
        kept = state.masked_fill((rows.count > 0).view(B, 1, 1), 0.0)
    return rows.back(m.flatten(2)).view(m.shape), rows.end(m[:, -1], kept)


def recurrent(u: Tensor, A: Tensor, B: Tensor, m: Tensor, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token by token: the oracle of the other forms, and the step of decoding. A [O, O], B [O], m [B, H, O]."""
    outputs = [m.new_zeros(m.shape[0], 0, *m.shape[1:])]
    for t in range(u.shape[1]):
        if reset is not None:
            m = m.masked_fill(reset[:, t, None, None], 0.0)
        new = m @ A.mT + u[:, t].unsqueeze(-1) * B
        m = new if mask is None else torch.where(mask[:, t, None, None], new, m)
        outputs.append(m.unsqueeze(1))
    return torch.cat(outputs, dim=1), m


def _fourier(u: Tensor, memory: LegendreSystem) -> Tensor:
    """u [B, T, H] from a state of zero -> m [B, T, H, O]."""
    T = u.shape[1]
    squares = list(memory.squares)
    while 2 ** len(squares) < T:
        squares.append(squares[-1] @ squares[-1])
    H = _respond(memory.taps[:1], torch.stack(squares), T)[0].to(u).mT  # [O, T]
    length = 1 << (2 * T - 2).bit_length()  # at least 2 T - 1: the end does not wrap round to the beginning
    spectrum = torch.fft.rfft(u.permute(0, 2, 1), n=length).unsqueeze(2) * torch.fft.rfft(H, n=length)
    return torch.fft.irfft(spectrum, n=length)[..., :T].permute(0, 3, 1, 2)


def _blocks(rows: RightAligned, squares: Tensor, taps: Tensor, state: Tensor | None) -> Tensor:
    """m [B, T, H, O] of aligned rows. In a block, inputs reach tokens with as many starts before them."""
    (B, T, H), order = rows.x.shape, taps.shape[1]
    size = min(BLOCK, 1 << (T - 1).bit_length())
    n_blocks = -(-T // size)
    lack = n_blocks * size - T
    u = F.pad(rows.x, (0, 0, lack, 0)).reshape(B * n_blocks, size, H)
    windows = F.pad(u, (0, 0, size - 1, 0)).unfold(1, size, 1)  # [M, size, H, size], the newest last
    begun = None
    if rows.segment is not None:
        begun = F.pad(rows.starts(), (lack, 0)).view(B * n_blocks, size).to(torch.int64).cumsum(1)
        same = F.pad(begun, (size - 1, 0), value=-1).unfold(1, size, 1) == begun.unsqueeze(-1)
        windows = windows.masked_fill(~same.unsqueeze(2), 0.0)
    m = (windows @ taps[:size].flip(0)).view(B, n_blocks, size, H, order)
    if state is not None:
        m = m + _first(rows, squares, state, size, lack).view(m.shape)
    step, before = squares[size.bit_length() - 1].mT, [m.new_zeros(B, H, order)]
    stops = None if begun is None else (begun[:, -1] > 0).view(B, n_blocks, 1, 1)
    for k, own in enumerate(m[:, :, -1].unbind(1)):
        passed = before[-1] @ step
        before.append(own + (passed if stops is None else passed.masked_fill(stops[:, k], 0.0)))
    earlier = _respond(torch.stack(before[:-1], dim=1).flatten(0, 2) @ squares[0].mT, squares, size)
    earlier = earlier.view(B, n_blocks, H, size, order).transpose(2, 3)
    if begun is not None:
        earlier = earlier.masked_fill((begun > 0).view(B, n_blocks, size, 1, 1), 0.0)
    return (m + earlier).view(B, -1, H, order)[:, lack:]


def _first(rows: RightAligned, squares: Tensor, state: Tensor, size: int, lack: int) -> Tensor:
    """What the state before the row adds in the block of its first real token, [B, lack + T, H · O]; blocks carry it on."""
    B, T, _ = rows.x.shape
    column = torch.arange(lack + T, device=state.device)
    begin = torch.full((B, 1), lack, device=state.device) if rows.count is None else (lack + T - rows.count).unsqueeze(1)
    place = column - begin
    here = (place >= 0) & (column // size == begin // size)
    if rows.segment is not None:
        here = here & F.pad(rows.segment == 0, (lack, 0))
    response = _respond(state.flatten(0, 1) @ squares[0].mT, squares, size).view(B, -1, size, state.shape[-1])
    response = response.transpose(1, 2).flatten(2)
    index = place.clamp(0, size - 1).unsqueeze(-1).expand(-1, -1, response.shape[-1])
    return response.gather(1, index).masked_fill(~here.unsqueeze(-1), 0.0)


def _respond(m: Tensor, squares: Tensor, T: int) -> Tensor:
    """Āˡ m for l < T: m [M, O] -> [M, T, O], by doubling."""
    found, k = m.unsqueeze(1), 0
    while found.shape[1] < T:
        found = torch.cat([found, found @ squares[k].mT], dim=1)
        k += 1
    return found[:, :T]
