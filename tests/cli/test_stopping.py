"""What ends a command ends it cleanly, even where a library swallows the first word of it."""

import contextlib
import os
import signal

import pytest

from edgepack_cli.stopping import ENDINGS, stoppable


@pytest.mark.parametrize("number", ENDINGS)
def test_every_ending_is_that_of_ctrl_c(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stoppable():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_an_ending_that_was_swallowed_is_said_again():
    with stoppable() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_nohup_keeps_its_word():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            check()
    finally:
        signal.signal(signal.SIGHUP, before)
