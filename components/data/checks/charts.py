"""Pictures as SVG text: they take their colours from the page, in the light and in the dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT = 340, 132
_LEFT, _BOTTOM, _TOP = 6, 20, 14


def histogram_svg(edges: Sequence[float], counts: Sequence[int], is_log: bool, unit: str) -> str:
    """Bars of equal width, with round numbers below.

    Args:
        edges: of the bins, one more than there are counts; evenly spaced, or their logarithms are.
        unit: behind the numbers of a bar that the mouse is on.
    """
    highest = max(counts) or 1
    step = (_WIDTH - 2 * _LEFT) / len(counts)
    room = _HEIGHT - _BOTTOM - _TOP
    parts = []
    for index, count in enumerate(counts):
        if not count:
            continue
        height = max(1.5, room * count / highest)
        x, y = _LEFT + index * step, _HEIGHT - _BOTTOM - height
        told = f"{number(edges[index])} to {number(edges[index + 1])} {unit}: {count:,}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{height:.1f}" rx="1">'
            f"<title>{escape(told)}</title></rect>"
        )
    axis = _HEIGHT - _BOTTOM + 0.5
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{axis}" y2="{axis}"/>')
    place = _placer(edges, is_log)
    for value in ticks(edges[0], edges[-1], is_log):
        parts.append(f'<text x="{place(value):.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{_LEFT}" y="9">{highest:,}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _placer(edges: Sequence[float], is_log: bool) -> Callable[[float], float]:
    scale = math.log if is_log else float
    low, high = scale(edges[0]), scale(edges[-1])

    def place(value: float) -> float:
        x = _LEFT + (scale(value) - low) / (high - low) * (_WIDTH - 2 * _LEFT)
        return min(max(x, _LEFT + 8), _WIDTH - _LEFT - 12)  # the number stays inside of the picture

    return place


def ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Three to seven round numbers between two others."""
    if is_log and high / low > 5:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        found = [value for value in found if low <= value <= high]
        return found if len(found) <= 7 else [value for value in found if f"{value:e}".startswith("1")]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number for a person: three digits, no exponent where it can be helped."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        digits = 0 if abs(value) >= 100 else max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{min(digits, 4)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"
