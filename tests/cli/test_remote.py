"""What comes back from another machine, and whose fault it is; ssh itself has a foreign test."""

from __future__ import annotations

import click
import pytest

from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.remote import RemoteShell, read_answer

SHELL = RemoteShell("board")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("ssh://board", ("board", None, None)),
        ("ssh://pi@board.example:2222", ("board.example", "pi", 2222)),
        ("ssh://pi@[::1]:22/", ("::1", "pi", 22)),
    ],
)
def test_addresses(address, parts):
    found = RemoteShell.parse(address)
    assert (found.host, found.user, found.port) == parts


@pytest.mark.parametrize(
    "address",
    ["board", "http://board", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://-l@board",
     "ssh://pi:secret@board", "ssh://board/path", "ssh://board:99999", "ssh://board?x=1"],
)  # fmt: skip
def test_what_is_no_address(address):
    with pytest.raises(click.UsageError, match="is not of the form"):
        RemoteShell.parse(address)


def test_ssh_asks_nothing_forwards_nothing_and_takes_no_word_for_an_option():
    words = RemoteShell("board", "pi", 2222, "py -m edgepack_cli").arguments(["--variant", "$(x)"])
    options = {words[place + 1] for place, word in enumerate(words) if word == "-o"}
    assert {"BatchMode=yes", "ForwardAgent=no", "ClearAllForwardings=yes"} <= options
    assert words[-3:-1] == ["--", "board"]
    assert "py -m edgepack_cli bench --json" in words[-1]
    assert "'$(x)'" in words[-1].replace("'\"'\"'", "'")


@pytest.mark.parametrize(
    ("code", "err", "name", "exit_code"),
    [
        (255, "ssh: Could not resolve hostname board", "no-host", 3),
        (255, "Host key verification failed.", "host-unknown", 3),
        (255, "pi@board: Permission denied (publickey).", "ssh-refused", 3),
        (255, "connect to host board port 22: Connection refused", "no-connection", 3),
        (255, "connect to host board port 22: Connection timed out", "no-connection", 3),
        (255, "something else", "no-connection", 3),
        (127, "sh: 1: edgepack: not found", "no-edgepack", 3),
        (2, "Error: No such command 'bench'.", "old-version", 3),
        (97, "No space left on device", "no-room", 3),
        (6, "error: golden", "remote-failed", 6),
        (7, "error: no variant of this bundle fits", "remote-failed", 7),
        (1, "needs onnxruntime", "remote-failed", 3),
        (0, "", "remote-failed", 3),
        (-9, "", "remote-failed", 3),
    ],
)
def test_failures_have_words_and_codes(code, err, name, exit_code):
    with pytest.raises(CommandError) as caught:
        read_answer(SHELL, code, b"", err)
    assert (caught.value.code, caught.value.exit_code) == (name, Exit(exit_code))
    assert "board" in str(caught.value)


def test_what_a_machine_says_cannot_move_the_cursor():
    with pytest.raises(CommandError) as caught:
        read_answer(SHELL, 9, b"", "\x1b[2Jgone")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("out", [b"hello", b"{}", b'{"schema":"edgepack-bench/9"}', b"\xff\xfe"])
def test_an_answer_that_is_none(out):
    with pytest.raises(CommandError, match="answers something else") as caught:
        read_answer(SHELL, 0, out, "")
    assert caught.value.code == "other-version"
