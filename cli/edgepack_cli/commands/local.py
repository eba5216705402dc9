"""``edgepack local``: the device itself, without the fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.place import Place, find_place, place_options

if TYPE_CHECKING:
    from edgepack_runtime.local.control import Taken
    from edgepack_runtime.local.view import DeviceView, SlotView

F = TypeVar("F", bound=Callable[..., Any])

POLL_SECONDS = 0.2
HEARD_SECONDS = 60.0
_RESTING = frozenset({"idle", "succeeded", "failed", "fell_back", "rejected", "safe_mode"})
_BLAMED = {"bundle": Exit.VERIFICATION, "config": Exit.CONFIG}
_ENDED = {"succeeded": Exit.OK, "rejected": Exit.VERIFICATION, "fell_back": Exit.ROLLED_BACK}
_LATER = "what the fleet wants next takes its place"
_LONG_PATH = (
    "the path is too long to be kept: if the device restarts while it installs, run this once more"
)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_slot_option = click.option("--slot", help="Only this slot.")
_probation_option = click.option(
    "--probation", type=click.FloatRange(0.1, 86_400.0), metavar="SECONDS",
    help="How long the device watches the bundle.  [default: 120]",
)  # fmt: skip
_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait for the end.")


@click.group()
def command() -> None:
    """Look at this device and change it, with no fleet.

    Needs to be the daemon's user, or root.
    """


@command.command()
@place_options
@_slot_option
@_json_option
def status(*, config: Path | None, state_dir: Path | None, slot: str | None, as_json: bool) -> None:
    """Show the slots of this device, its broker, disk, memory and certificates.

    Example: edgepack local status
    """
    from edgepack_cli.local_view import status_lines

    place = find_place(config, state_dir)
    view = look(place, slot)
    if as_json:
        emit_json(view)
        return
    for line in status_lines(view):
        say(line)


@command.command()
@place_options
@_slot_option
@_json_option
def history(
    *, config: Path | None, state_dir: Path | None, slot: str | None, as_json: bool
) -> None:
    """Show how the last installs of each slot ended, newest first; it keeps a hundred.

    Example: edgepack local history --slot churn
    """
    from edgepack_cli.local_view import history_table
    from edgepack_runtime.activation.history import History
    from edgepack_runtime.local.looking import slot_folders
    from edgepack_runtime.storage.fsio import DurableFS

    place = find_place(config, state_dir)
    with _sudo(place):
        folders = _chosen(slot_folders(place.state_dir), slot)
        found = [(one.name, x) for one in folders for x in History(DurableFS(), one).records()]
    found.sort(key=lambda pair: -pair[1].at)
    if as_json:
        emit_json([{"slot": name, "record": record} for name, record in found])
    else:
        say(history_table(found) if found else "no install has ended here yet")


@command.command()
@place_options
@_slot_option
@_json_option
def why(*, config: Path | None, state_dir: Path | None, slot: str | None, as_json: bool) -> None:
    """Say why a slot is as it is, what would change that, and what to do.

    Example: edgepack local why --slot churn
    """
    from edgepack_cli.local_view import why_lines
    from edgepack_runtime.local.why import explain

    view = look(find_place(config, state_dir), slot)
    told = [(one, explain(one, view)) for one in view.slots]
    if as_json:
        emit_json({one.name: {"phase": one.phase, "why": words} for one, words in told})
        return
    for one, words in told:
        for line in why_lines(one, words):
            say(line)
    if not told:
        say("this device has no slot: nobody has asked it for a bundle yet")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@place_options
@click.option("--slot", help="Which slot.  [default: that of the bundle's name]")
@_probation_option
@click.option("--retry-blocked", is_flag=True, help="Try it even if it misbehaved here before.")
@_wait_option
@_json_option
def install(
    *, file: Path, config: Path | None, state_dir: Path | None, slot: str | None,
    probation: float | None, retry_blocked: bool, no_wait: bool, as_json: bool,
) -> int:  # fmt: skip
    """Install a bundle file: verify, probe, load and watch it, as if the fleet had sent it.

    The keyring of the device must vouch for it. What the fleet wants next takes its place. The
    daemon itself reads FILE, so it must be where the daemon may read.

    Example: edgepack local install churn-1.4.0.edgepack
    """
    from edgepack_runtime.local.control import InstallOrder

    order = InstallOrder(
        path=str(file.absolute()),
        slot=slot,
        probation_seconds=probation,
        retry_blocked=retry_blocked,
    )
    return _change(
        find_place(config, state_dir), "install", order, no_wait=no_wait, as_json=as_json
    )


@command.command()
@place_options
@click.option("--slot", help="Which slot.  [default: the only one]")
@_probation_option
@_wait_option
@_json_option
def rollback(
    *, config: Path | None, state_dir: Path | None, slot: str | None, probation: float | None,
    no_wait: bool, as_json: bool,
) -> int:  # fmt: skip
    """Go back to the bundle before, which the device has kept; it is watched as a new one is.

    What the fleet wants next takes its place.

    Example: edgepack local rollback --slot churn
    """
    from edgepack_runtime.local.control import RollbackOrder

    place = find_place(config, state_dir)
    with _refusals(place):
        order = RollbackOrder(slot=slot or _only_slot(place), probation_seconds=probation)
    return _change(place, "rollback", order, no_wait=no_wait, as_json=as_json)


@command.command("factory-reset")
@place_options
@_slot_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json_option
def factory_reset(
    *, config: Path | None, state_dir: Path | None, slot: str | None, yes: bool, as_json: bool
) -> None:
    """Forget installed bundles, what was blocked, and the history; of all slots captures too.

    It keeps who the device is, its keyring, the security floors, the last order that it obeyed, and
    what it has yet to tell the fleet. A factory bundle, where there is one, is installed next.

    Example: edgepack local factory-reset --yes
    """
    place = find_place(config, state_dir)
    if not yes:
        what = f"slot {slot}" if slot else "every slot"
        click.confirm(f"Remove the bundles and the history of {what}?", abort=True, err=True)
    names = _reset(place, [slot] if slot is not None else None)
    if as_json:
        emit_json({"slots": names})
    else:
        say(f"emptied: {', '.join(names) or 'nothing'}")
        note("identity, keyring, security floors and the last obeyed order are kept")


def look(place: Place, slot: str | None = None) -> DeviceView:
    """How a device is, by its daemon or by its files; of one slot when that is named.

    Raises:
        CommandError: There is no such slot, or the files are somebody else's.
    """
    import msgspec

    from edgepack_runtime.local.asking import Asking, NoDaemonError

    with _refusals(place), _sudo(place):
        try:
            view = Asking(place.state_dir).view()
        except NoDaemonError:
            view = _stored(place)
    if slot is None:
        return view
    found = [one for one in view.slots if one.name == slot]
    if not found:
        raise _no_slot(slot, [one.name for one in view.slots])
    return msgspec.structs.replace(view, slots=found)


def _stored(place: Place) -> DeviceView:
    from edgepack_runtime.local.looking import device_view, stored_slots
    from edgepack_runtime.local.view import DeviceView
    from edgepack_runtime.slot_runtime import now_ms
    from edgepack_runtime.storage.fsio import DurableFS

    slots = stored_slots(DurableFS(), place.state_dir)
    if place.config is not None:
        return device_view(place.config, slots)
    return DeviceView(device=None, state_dir=str(place.state_dir), at=now_ms(), slots=slots)


def _change(place: Place, what: str, order: object, *, no_wait: bool, as_json: bool) -> int:
    from edgepack_runtime.local.asking import Asking
    from edgepack_runtime.local.control import Taken

    with _refusals(place):
        asking = Asking(place.state_dir)
        session = _session(asking.view())
        taken = asking.ask("POST", what, order, Taken)
        note(f"slot {taken.slot}: {taken.version} was asked for; {_LATER}")
        if not taken.resumes:
            note(_LONG_PATH)
        if no_wait:
            return _told(taken, None, as_json=as_json)
        ended = _until_ended(asking.view, taken, session)
        return _told(taken, ended, as_json=as_json)


def _until_ended(view: Callable[[], DeviceView], taken: Taken, session: int | None) -> SlotView:
    said = ""
    while True:
        now = view()
        slot = next((one for one in now.slots if one.name == taken.slot), None)
        if slot is None:
            raise CommandError(f"slot {taken.slot} is gone")
        # a daemon that was started anew counts from zero, and goes on from what it had written down
        heard = _session(now) != session or (slot.live and slot.live.attended >= taken.ticket)
        if heard and slot.phase in _RESTING and slot.pending is None:
            return slot
        words = f"{slot.phase} {slot.progress:.0%}" if slot.phase == "downloading" else slot.phase
        if heard and words != said:
            said = words
            note(f"slot {taken.slot}: {words}")
        time.sleep(POLL_SECONDS)


def _until_heard(view: Callable[[], DeviceView], taken: list[Taken]) -> None:
    """Wait until slots have done what takes no time, as an emptied one does."""
    deadline = time.monotonic() + HEARD_SECONDS
    while time.monotonic() < deadline:
        heard = {one.name: one.live.attended for one in view().slots if one.live}
        if all(heard.get(one.slot, 0) >= one.ticket for one in taken):
            return
        time.sleep(POLL_SECONDS)
    raise CommandError(
        f"the slots did not take notice in {HEARD_SECONDS:g} s; see the daemon's log"
    )


def _told(taken: Taken, slot: SlotView | None, *, as_json: bool) -> int:
    if slot is None:
        if as_json:
            emit_json(taken)
        return Exit.OK
    if as_json:
        emit_json(slot)
    wanted = slot.wanted.digest if slot.wanted else None
    if wanted != taken.digest:
        reason = f"{slot.words} [{slot.code}]" if slot.code else "something else was wanted since"
        raise CommandError(f"slot {slot.name} did not take {taken.version}: {reason}")
    if slot.phase == "succeeded":
        if not as_json:
            say(f"slot {slot.name} runs {taken.version} ({taken.digest})")
            _remark(slot)
        return Exit.OK
    words = f"slot {slot.name}: {slot.phase}: {slot.words} [{slot.code}]"
    raise CommandError(words, exit_code=_ENDED.get(slot.phase, Exit.BAD_INPUT))


def _remark(slot: SlotView) -> None:
    if slot.words:
        note(f"slot {slot.name}: {slot.words}")


def _reset(place: Place, slots: list[str] | None) -> list[str]:
    from edgepack_runtime.local.asking import Asking, NoDaemonError
    from edgepack_runtime.local.control import ResetOrder, Taken
    from edgepack_runtime.local.stopped import become_owner, reset_slots
    from edgepack_runtime.process import only_one
    from edgepack_runtime.storage.fsio import DurableFS

    with _refusals(place), _sudo(place):
        try:
            asking = Asking(place.state_dir)
            taken = asking.ask("POST", "reset", ResetOrder(slots=slots), list[Taken])
            _until_heard(asking.view, taken)
            return [one.slot for one in taken]
        except NoDaemonError:
            become_owner(place.state_dir)
            with only_one(place.state_dir):
                return reset_slots(DurableFS(), place.state_dir, slots)


def _only_slot(place: Place) -> str:
    names = [one.name for one in look(place).slots]
    if len(names) != 1:
        told = ", ".join(names) or "none"
        raise CommandError(f"say which slot with --slot; there are: {told}", exit_code=Exit.USAGE)
    return names[0]


def _chosen(folders: list[Path], slot: str | None) -> list[Path]:
    found = [one for one in folders if slot in (None, one.name)]
    if slot is not None and not found:
        raise _no_slot(slot, [one.name for one in folders])
    return found


def _no_slot(slot: str, there: list[str]) -> CommandError:
    return CommandError(f"there is no slot {slot}; there are: {', '.join(there) or 'none'}")


def _session(view: DeviceView) -> int | None:
    return view.daemon.session if view.daemon else None


@contextmanager
def _refusals(place: Place) -> Iterator[None]:
    """What the daemon says no to, with the exit code that the same thing has elsewhere."""
    from edgepack_runtime.local.asking import NoDaemonError, RefusedError

    try:
        yield
    except RefusedError as error:
        code = _BLAMED.get(error.blame, Exit.BAD_INPUT)
        raise CommandError(f"{error} [{error.code}]", exit_code=code, code=error.code) from error
    except NoDaemonError as error:
        config = place.config_path or "FILE"
        raise CommandError(
            f"{error}, and this needs one: systemctl start edgepack, or edgepack run --config "
            f"{config}",
            code=error.code,
        ) from error


@contextmanager
def _sudo(place: Place) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        words = f"{place.state_dir} is for the daemon's user and root: run this with sudo"
        raise CommandError(words, code="not-permitted") from error
