"""Charts stay inside their frame, and labels off each other, whatever the values are."""

from __future__ import annotations

import itertools
import math

import pytest

from edgepack_packager.report.charts import (
    WIDTH,
    Bar,
    Point,
    Span,
    bars,
    heat_map,
    intervals,
    scatter,
)


def points(values):
    return [Point(x, y, str(n), f"point {n}", "inside") for n, (x, y) in enumerate(values)]


def numbers(picture, *names):
    return [
        float(part.attrib[name]) for part in picture.iter() for name in names if name in part.attrib
    ]


@pytest.mark.parametrize(
    "values", [[(0.0, 0.0)], [(5.0, 5.0)] * 9, [(1e-9, 1e9), (1.0, 0.0)], [(3.0, 0.001)]]
)
def test_points_stay_inside_the_frame(values):
    picture = scatter(points(values), title="t", x_name="x", y_name="y")
    assert all(0 <= x <= WIDTH for x in numbers(picture, "x", "cx", "x1", "x2"))
    assert all(0 <= y <= 320 for y in numbers(picture, "y", "cy", "y1", "y2"))


def test_the_numbers_of_points_in_one_place_do_not_hide_each_other():
    picture = scatter(points([(5.0, 5.0)] * 8), title="t", x_name="x", y_name="y")
    labels = [part for part in picture.iter("text") if part.attrib.get("class") == "small"]
    places = [(float(part.attrib["x"]), float(part.attrib["y"])) for part in labels]
    assert len(places) == 8
    assert min(math.dist(*pair) for pair in itertools.combinations(places, 2)) > 10


def test_an_interval_lies_across_its_value_and_the_limit_beside_it():
    spans = [Span("a", 0.0, -0.1, 0.1, "0", "a: 0", "inside")]
    picture = intervals(spans, title="t", limit=0.3, limit_words="at most")
    (line,) = [part for part in picture.iter("line") if part.attrib["class"].startswith("span")]
    (dot,) = picture.iter("circle")
    (limit,) = [part for part in picture.iter("line") if part.attrib["class"] == "limit"]
    low, value, high = (float(line.attrib["x1"]), float(dot.attrib["cx"]), float(line.attrib["x2"]))
    assert low < value < high < float(limit.attrib["x1"]) <= WIDTH


def test_equal_values_are_drawn_all_the_same():
    span = Span("a", 0.0, 0.0, 0.0, "0", "a: 0", "inside")
    assert all(
        math.isfinite(x)
        for x in numbers(intervals([span], title="t", limit=None, limit_words=""), "x1")
    )
    assert len(list(bars([Bar("a", 0.0, "0", "a")], title="t").iter("rect"))) == 1


def test_a_heat_map_has_a_cell_for_every_count():
    picture = heat_map(["a", "b" * 50], {(0, 1): 3, (1, 0): 1}, title="t")
    cells = [part for part in picture.iter("rect") if part.attrib.get("class") == "heat"]
    assert len(cells) == 2
    assert cells[0].attrib["fill-opacity"] > cells[1].attrib["fill-opacity"]
    assert "3 rows: the source says a, the candidate" in "".join(picture.itertext())
