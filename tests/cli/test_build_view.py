"""Progress of a build: lines in a log, a growing table in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from edgepack_cli.build_view import Screen, line_of, watching
from edgepack_packager import CandidateRow, Progress

ROW = CandidateRow("rpi5", "int8-static", "accuracy 0.96 (0.94..0.98, n=540) [bold]", 21_700, None)
TRIED = Progress("search", "rpi5: int8-static tried", 2.5, ROW)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(screen):
    screen.console.print(screen)
    return screen.console.file.getvalue()


def screen(height=25, seconds=(0.0, 7.25)):
    ticks = iter(seconds)
    console = Console(file=Terminal(), width=100, height=height, force_terminal=True)
    return Screen(console, lambda: next(ticks))


def test_a_line_has_the_figures_of_what_was_tried():
    assert line_of(Progress("load", "", 1.0)) == "   1.0 s  load"
    words = "rpi5: int8-static: accuracy 0.96 (0.94..0.98, n=540) [bold], 21.2 KiB, not measured"
    assert line_of(TRIED) == f"   2.5 s  search: {words}"


def test_without_a_terminal_there_are_plain_lines(capsys):
    with watching(io.StringIO()) as listener:
        listener(TRIED)
    assert capsys.readouterr().err == f"{line_of(TRIED)}\n"


def test_the_screen_shows_what_is_done_and_for_how_long():
    view = screen()
    view.take(Progress("search", "rpi5: fp32", 0.1))
    assert "7.2 s  search  rpi5: fp32" in drawn(view)


def test_the_table_grows_and_takes_names_as_text():
    view = screen()
    view.take(TRIED)
    shown = drawn(view)
    assert "candidate" in shown
    assert "n=540) [bold]" in shown
    assert "21.2 KiB" in shown


def test_only_the_latest_candidates_are_shown_where_the_screen_is_low():
    view = screen(height=9)
    for number in range(12):
        row = CandidateRow("pc", f"candidate-{number}", "accuracy 1", 1000, 0.01)
        view.take(Progress("search", "", 1.0, row))
    shown = drawn(view)
    assert "candidate-11" in shown
    assert "candidate-8" not in shown


def test_a_terminal_is_left_clean(capsys):
    terminal = Terminal()
    with watching(terminal) as listener:
        listener(TRIED)
    assert terminal.getvalue().endswith("\x1b[2K")
    assert capsys.readouterr() == ("", "")
