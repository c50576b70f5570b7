"""Labels beside points and at the ends of lines, moved apart so that they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instar.report.plots import LIGHT, Styles, label

_SIZE = 9.5
Box = tuple[float, float, float, float]
_PLACES = (
    *((8, 0, "left"), (8, 9, "left"), (8, -9, "left"), (-8, 0, "right"), (-8, 9, "right"), (-8, -9, "right")),
    *((0, 14, "center"), (0, -14, "center"), (8, 20, "left"), (8, -20, "left")),
)
"""Offsets of a label from its point, the most wanted first."""
_WIDE = 0.62  # mean width of a letter, as a part of the font's size


def at_points(
    figure: Any,
    axes: Any,
    styles: Styles,
    points: Sequence[tuple[str, float, float]],
    bars: Sequence[Box] = (),
) -> None:
    """The name of each point beside it, where it touches no point, no bar (x0, y0, x1, y1) and no label that stands already."""
    figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    taken = [_box(to_pixels((x, y)), 10 * scale) for _, x, y in points]
    for x0, y0, x1, y1 in bars:
        (left, low), (right, high) = to_pixels((x0, y0)), to_pixels((x1, y1))
        taken.append((left - 2, low - 2, right + 2, high + 2))
    for address, x, y in points:
        name = label(address)
        wide, high = len(name) * _SIZE * _WIDE * scale, _SIZE * 1.2 * scale
        px, py = to_pixels((x, y))
        found: list[tuple[float, int, int, int, str, Box]] = []
        for dx, dy, side in _PLACES:
            left = {"left": px + dx * scale, "right": px + dx * scale - wide, "center": px - wide / 2}[side]
            box = (left, py + dy * scale - high / 2, left + wide, py + dy * scale + high / 2)
            bad = sum(_overlap(box, other) for other in taken)
            bad += 1000 * (box[0] < frame.x0 or box[2] > frame.x1 + 40 * scale or box[1] < frame.y0 or box[3] > frame.y1)
            found.append((bad, len(found), dx, dy, side, box))
        _, _, dx, dy, side, box = min(found)
        taken.append(box)
        axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", size=_SIZE,
                      color=styles.colour(address))  # fmt: skip


def at_ends(figure: Any, axes: Any, styles: Styles, ends: Sequence[tuple[str, float, float]]) -> None:
    """The name of each line at its right end, spread so that none covers another."""
    if not ends:
        return
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    points = [(name, *axes.transData.transform((x, y))) for name, x, y in ends]
    points.sort(key=lambda p: p[2])
    heights = spread([p[2] for p in points], 12.5 * scale)
    floor = axes.get_window_extent().y0 + 5 * scale  # below it stand the axis' own labels
    for i, height in enumerate(heights):
        heights[i] = floor = max(height, floor)
        floor += 12.5 * scale
    right = max(x for _, x, _ in ends)
    for (address, _, py), height in zip(points, heights, strict=True):
        y = next(y for name, _, y in ends if name == address)
        moved = (height - py) / scale
        axes.annotate(
            label(address, 16),
            (right, y),
            (9, moved),
            textcoords="offset points",
            va="center",
            size=_SIZE,
            color=styles.colour(address),
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": LIGHT["line"]} if abs(moved) > 7 else None,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as keeps them `gap` apart: groups that touch are centred on where they came from."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height, 1.0, height])  # sum of wished centres, members, centre
        while len(groups) > 1 and groups[-1][2] - groups[-2][2] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            last = groups.pop()
            total, count = groups[-1][0] + last[0], groups[-1][1] + last[1]
            groups[-1] = [total, count, total / count]
    return [centre + gap * (i - (count - 1) / 2) for _, count, centre in groups for i in range(int(count))]


def _box(point: Any, size: float) -> Box:
    x, y = point
    return x - size / 2, y - size / 2, x + size / 2, y + size / 2


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
