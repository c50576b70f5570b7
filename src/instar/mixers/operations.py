"""Multiplications and additions of an attention, counted by formula, and the energy that a table gives them; not measured.

The counts are those by which EcoFormer (arXiv 2209.09004) reports energy, and beside them the complete ones. The table is that of
its authors, for a 45 nm process: no CPU or GPU runs at these figures, where moving data costs more than computing does.
"""

from __future__ import annotations

from dataclasses import dataclass

from instar.errors import ShapeError

MULTIPLY_PICOJOULES, ADD_PICOJOULES = 3.7, 0.9
MULTIPLY_AREA, ADD_AREA = 7700, 4184
"""Square micrometres of a float32 multiplier and adder."""


@dataclass(frozen=True)
class Operations:
    """Float32 operations between the projections of an attention layer, over one sequence."""

    multiplications: int
    additions: int
    exponentials: int = 0
    """No energy stands in the table for them."""

    @property
    def counted_picojoules(self) -> float:
        """Energy by the table; exponentials, divisions and all movement of data are not in it."""
        return MULTIPLY_PICOJOULES * self.multiplications + ADD_PICOJOULES * self.additions

    @property
    def counted_area(self) -> float:
        """As many multipliers and adders side by side, in square micrometres."""
        return float(MULTIPLY_AREA * self.multiplications + ADD_AREA * self.additions)

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.multiplications + other.multiplications,
            self.additions + other.additions,
            self.exponentials + other.exponentials,
        )


def of_softmax(tokens: int, width: int, heads: int) -> Operations:
    """Softmax attention: 2 N² D and the scale, H N² multiplications; 2 N² D additions. Its sums and divisions are not counted."""
    _require(tokens=tokens, width=width, heads=heads)
    pairs = tokens * tokens
    return Operations(2 * pairs * width + heads * pairs, 2 * pairs * width, heads * pairs)


def of_ecoformer(tokens: int, width: int, heads: int, *, bits: int = 16, support: int = 25, complete: bool = True) -> Operations:
    """EcoFormer over N tokens, H heads of width C, c bits and m anchors.

    H N (2 m + m c + c + 1 + C) multiplications and H N (2 m C + m c + 2 c + 2 c C + C) additions, the authors' count; complete:
    the m C products of the squared distances as well, which that leaves out. What a code of ±1 multiplies counts as an addition,
    which needs hardware that knows it.
    """
    _require(tokens=tokens, width=width, heads=heads, bits=bits, support=support)
    rows, C, m, c = heads * tokens, width // heads, support, bits
    multiplications = rows * (2 * m + m * c + c + 1 + C + (m * C if complete else 0))
    return Operations(multiplications, rows * (2 * m * C + m * c + 2 * c + 2 * c * C + C), rows * m)


def _require(**sizes: int) -> None:
    if min(sizes.values()) < 1 or sizes["width"] % sizes["heads"]:
        raise ShapeError(
            "Operations are counted of positive sizes, the width a multiple of the heads; received "
            f"{', '.join(f'{name}={value}' for name, value in sizes.items())}."
        )
