"""Charts as SVG without scripts or style attributes: classes carry the colours, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

from edgepack_packager.report.markup import node

Mark = Literal["chosen", "inside", "unproven", "outside"]

WIDTH = 440.0
"""In user units; text of 13 of them stays readable on a phone of 360 pixels."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 22.0, 46.0
_HEIGHT = 320.0
_ROW = 38.0
_CELL = 30.0
_LONGEST = 46
_AROUND = tuple(
    (radius * math.cos(turn * math.pi / 4), radius * math.sin(turn * math.pi / 4))
    for radius in (15.0, 26.0, 38.0)
    for turn in (-2, -1, 0, 1, 2, 3, 4, 5)
)
"""Where the number of a point may stand, the nearest places first."""

_APART = 15.0


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter plot; ``words`` show when the pointer rests on it."""

    x: float
    y: float
    label: str
    words: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Span:
    """A row of an interval chart: a value with its interval, in words on the right."""

    label: str
    value: float
    low: float
    high: float
    text: str
    words: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart; ``length`` is positive."""

    label: str
    length: float
    text: str
    words: str


def scatter(points: Sequence[Point], *, title: str, x_name: str, y_name: str) -> Element:
    """Points over two axes that begin at zero.

    Args:
        points: What to draw; at least one.
        title: What the picture says, for who cannot see it.
        x_name: Of the axis to the right, with its unit.
        y_name: Of the axis upwards, with its unit.
    """
    right, top = _top([point.x for point in points]), _top([point.y for point in points])
    place = [
        (
            _LEFT + point.x / right * (WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - point.y / top * (_HEIGHT - _TOP - _BOTTOM),
        )
        for point in points
    ]
    drawn = [
        _mark(x, y, point.mark, point.words) for (x, y), point in zip(place, points, strict=True)
    ]
    return _picture(
        title,
        _HEIGHT,
        *_grid(right, top, x_name, y_name),
        *_numbers(place, points),
        *drawn,
    )


def intervals(
    spans: Sequence[Span], *, title: str, limit: float | None, limit_words: str
) -> Element:
    """One value with its interval per row, and a line where the limit is."""
    ends = [end for span in spans for end in (span.low, span.high)]
    first, last = _range([*ends, *([] if limit is None else [limit])])
    height = _TOP + _ROW * len(spans) + 30

    def across(value: float) -> float:
        return 8 + (value - first) / (last - first) * (WIDTH - 16)

    rows: list[Element] = []
    for number, span in enumerate(spans):
        y = _TOP + _ROW * number
        rows += _span_row(span, y, across(span.value), across(span.low), across(span.high))
        if limit is not None:
            at = across(limit)
            rows.append(node("line", x1=at, x2=at, y1=y + 5, y2=y + 23, class_="limit"))
    if limit is not None:
        side = "end" if across(limit) > WIDTH / 2 else "start"
        words = node("text", limit_words, x=across(limit), y=height - 10, text_anchor=side)
        rows.append(words)
    return _picture(title, height, *rows)


def bars(rows: Sequence[Bar], *, title: str) -> Element:
    """One bar per row, the longest as wide as the picture."""
    longest = max(row.length for row in rows) or 1.0
    drawn = []
    for number, row in enumerate(rows):
        y = 16 + _ROW * number
        drawn += [
            *_row_words(row.label, row.text, y),
            node(
                "rect", node("title", row.words),
                x=8, y=y + 6, width=max(1.0, row.length / longest * (WIDTH - 16)), height=10,
                class_="bar",
            ),
        ]  # fmt: skip
    return _picture(title, 16 + _ROW * len(rows), *drawn)


def heat_map(names: Sequence[str], cells: dict[tuple[int, int], int], *, title: str) -> Element:
    """Counts over two equal lists of names: from the row's to the column's."""
    most = max(cells.values())
    left = 8 + min(130.0, 7.5 * max(len(_short(name, 16)) for name in names))
    cell = min(_CELL, (WIDTH - left - 8) / len(names))
    parts: list[Element] = []
    for number, name in enumerate(names):
        middle = number * cell + cell / 2
        words = node("title", name)
        parts += [
            node("text", words, _short(name, 16), x=left - 6, y=60 + middle + 4, text_anchor="end"),
            node(
                "text", _short(name, 5), x=left + middle, y=52, text_anchor="middle", class_="small"
            ),
        ]
    for (row, column), count in sorted(cells.items()):
        x, y = left + column * cell, 60 + row * cell
        hover = f"{count} rows: the source says {names[row]}, the candidate {names[column]}"
        parts += [
            node(
                "rect", node("title", hover), x=x + 1, y=y + 1, width=cell - 2, height=cell - 2,
                class_="heat", fill_opacity=0.12 + 0.33 * count / most,
            ),
            node(
                "text", str(count), x=x + cell / 2, y=y + cell / 2 + 4, text_anchor="middle",
                class_="small",
            ),
        ]  # fmt: skip
    frame = node(
        "rect", x=left, y=60, width=cell * len(names), height=cell * len(names), class_="frame"
    )
    axes = [
        node("text", "source (rows) to candidate (columns)", x=8, y=20, class_="muted"),
    ]
    return _picture(title, 70 + cell * len(names), *axes, frame, *parts)


def _picture(title: str, height: float, *parts: Element) -> Element:
    return node(
        "svg", node("title", title), *parts, xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=title,
    )  # fmt: skip


def _mark(x: float, y: float, mark: Mark, words: str) -> Element:
    """A shape of its own for every meaning: colour alone says nothing to many people."""
    hover = node("title", words)
    if mark == "chosen":
        shape = f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"
        return node("path", hover, d=shape, class_="mark chosen")
    if mark == "outside":
        shape = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return node("path", hover, d=shape, class_="mark outside")
    return node("circle", hover, cx=x, cy=y, r=5, class_=f"mark {mark}")


def _grid(right: float, top: float, x_name: str, y_name: str) -> Iterable[Element]:
    floor, wall = _HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in _ticks(top):
        y = floor - value / top * (floor - _TOP)
        yield node("line", x1=_LEFT, x2=wall, y1=y, y2=y, class_="grid")
        yield node("text", f"{value:g}", x=_LEFT - 6, y=y + 4, text_anchor="end", class_="muted")
    for value in _ticks(right):
        x = _LEFT + value / right * (wall - _LEFT)
        yield node("line", x1=x, x2=x, y1=_TOP, y2=floor, class_="grid")
        yield node("text", f"{value:g}", x=x, y=floor + 16, text_anchor="middle", class_="muted")
    yield node("text", x_name, x=wall, y=_HEIGHT - 8, text_anchor="end")
    yield node("text", y_name, x=4, y=13)


def _numbers(place: Sequence[tuple[float, float]], points: Sequence[Point]) -> Iterable[Element]:
    """The label of every point where it hides neither a point nor another label."""
    taken = list(place)
    for (x, y), point in zip(place, points, strict=True):
        spots = [(x + right, y + down) for right, down in _AROUND]
        spot = next((item for item in spots if _is_free(item, taken)), spots[0])
        taken.append(spot)
        if math.dist(spot, (x, y)) > 20:
            yield node("line", x1=x, y1=y, x2=spot[0], y2=spot[1], class_="grid")
        yield node(
            "text", point.label, x=spot[0], y=spot[1] + 4, text_anchor="middle", class_="small"
        )


def _is_free(spot: tuple[float, float], taken: Iterable[tuple[float, float]]) -> bool:
    inside = 8 < spot[0] < WIDTH - 8 and 10 < spot[1] < _HEIGHT - _BOTTOM + 4
    return inside and all(math.dist(spot, other) >= _APART for other in taken)


def _span_row(span: Span, y: float, at: float, low: float, high: float) -> Iterable[Element]:
    yield from _row_words(span.label, span.text, y)
    yield node("line", x1=8, x2=WIDTH - 8, y1=y + 14, y2=y + 14, class_="grid")
    yield node("line", x1=low, x2=high, y1=y + 14, y2=y + 14, class_=f"span {span.mark}")
    yield _mark(at, y + 14, span.mark, span.words)


def _row_words(label: str, text: str, y: float) -> Iterable[Element]:
    room = max(8, _LONGEST - len(text))
    yield node("text", node("title", label), _short(label, room), x=8, y=y)
    yield node("text", text, x=WIDTH - 8, y=y, text_anchor="end", class_="muted")


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Both ends with some air; never equal."""
    first, last = min(values), max(values)
    air = (last - first) * 0.04 or abs(first) * 0.04 or 1.0
    return first - air, last + air


def _top(values: Sequence[float]) -> float:
    """The end of an axis from zero that has room for all values."""
    return (max(values) or 1.0) * 1.12


def _ticks(end: float) -> list[float]:
    """About five round numbers from 0 to ``end``."""
    raw = end / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw)
    return [round(number * step, 12) for number in range(int(end / step) + 1)]
