"""``edgepack demo``: the whole loop on this machine, on real data."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from edgepack_cli.demo.kills import Killer, KillPoint
from edgepack_cli.demo.story import Story
from edgepack_cli.demo.world import DemoFailedError, World
from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.output import note, say

DEVICES = 5
PREFIX = "edgepack-demo-"
SOCKET_NAME_BYTES = 107
"""The longest name of a Unix socket: unix(7) has 108 bytes with the last one zero."""


@click.command()
@click.option("--control", is_flag=True, help="Make 1.2.0 a good model: it must complete.")
@click.option("--exit", "leave", is_flag=True, help="End when the story is told.")
@click.option("--seed", default=7, show_default=True, help="For training and the clients' walks.")
@click.option(
    "--kill", "kills", multiple=True, type=click.Choice([point.value for point in KillPoint]),
    help="Kill a process at this moment; the end must be the same. Repeatable.",
)  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path), help="Work in this folder and keep it.")
def command(
    *, control: bool, leave: bool, seed: int, kills: tuple[str, ...], keep: Path | None
) -> int:
    """Train, build, sign, roll out to five devices, and roll a bad model back.

    Real data, real processes, real messages, on loopback only. In a terminal it stays up until
    Ctrl-C; it leaves nothing behind.

    Example: edgepack demo --exit
    """
    # A terminal that is closed, like a SIGTERM, ends the demo as Ctrl-C does, but not under nohup.
    # Ctrl-C itself may be ignored: so it is for what a script starts in the background.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    folder = make_folder(keep)
    world = World(folder, devices=DEVICES, seed=seed)
    killer = Killer(*map(KillPoint, kills))
    story = Story(world, say, control=control, seed=seed, killer=killer)
    try:
        untrue = story.tell()
        code = _verdict(untrue, time.monotonic() - story.started)
        if not leave and sys.stdout.isatty():
            _stay(world)
    except (DemoFailedError, TimeoutError) as error:
        note(f"the demo failed: {error}")
        code = Exit.INTERNAL
    finally:
        # A second Ctrl-C would leave processes behind, which are in sessions of their own.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        world.stop()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def make_folder(keep: Path | None) -> Path:
    """The folder to work in: ``keep``, or a new temporary one.

    Raises:
        CommandError: Sockets in ``keep`` would have names that the system does not take.
    """
    if keep is None:
        root = Path(tempfile.gettempdir())
        short = root if _fits(root / f"{PREFIX}12345678") else Path("/tmp")  # noqa: S108 - mkdtemp
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=short))
    folder = keep.resolve()
    if not _fits(folder):
        raise CommandError(
            f"{folder} is too long a name: the demo's sockets in it would have more than "
            f"{SOCKET_NAME_BYTES} bytes; choose a shorter one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / "gateway-1" / "serve.sock")) <= SOCKET_NAME_BYTES


def _verdict(untrue: list[str], seconds: float) -> Exit:
    say("")
    if untrue:
        say(f"The demo did not come true ({seconds:.0f} s):")
        for words in untrue:
            say(f"  - {words}")
        return Exit.INTERNAL
    say(f"Everything came true in {seconds:.0f} s.")
    return Exit.OK


def _stay(world: World) -> None:
    say(f"The page stays up at {world.address}/#token={world.api.token}; Ctrl-C ends it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("stopping")
