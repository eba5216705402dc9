"""A report in a real Chromium: no error, every picture drawn, nothing wider than a phone."""

from __future__ import annotations

import pytest
from chromium import chromium
from tests.packager.report.report_samples import report

from edgepack_packager.report.page import to_html

BOXES = """[...document.querySelectorAll('details')].forEach((one) => one.open = true);
[...document.querySelectorAll('figure svg')].map((one) => one.getBoundingClientRect())
  .map((box) => [box.width, box.height])"""
OUTSIDE = """[...document.querySelectorAll('svg')].flatMap((one) => {
  const frame = one.getBoundingClientRect();
  return [...one.querySelectorAll('text, circle, rect, path')]
    .filter((part) => {
      const box = part.getBoundingClientRect();
      return box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map((part) => part.textContent);
})"""


@pytest.mark.foreign("chromium")
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn_without_errors(tmp_path, width, dark):
    page = tmp_path / "report.html"
    page.write_bytes(to_html(report()))
    with chromium() as browser:
        browser.open(page.as_uri())
        browser.resize(width, 900, dark=dark)
        boxes = browser.evaluate(BOXES)
        assert len(boxes) >= 9
        assert all(size[0] > 250 and size[1] > 50 for size in boxes)
        assert browser.evaluate(OUTSIDE) == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.scripts.length") == 0
        style = "getComputedStyle(document.querySelector('header h1')).color"
        assert browser.evaluate(style) == ("rgb(232, 234, 237)" if dark else "rgb(26, 26, 26)")
        assert browser.messages == []
