"""What can be done to a device whose daemon does not run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgepack_runtime.activation.events import Stopped, Wished
from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.activation.machine import step
from edgepack_runtime.candidate_runtime import FOLDER as CANDIDATE
from edgepack_runtime.capture.recorder import FOLDER
from edgepack_runtime.capture.ring import clear
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.local.looking import slot_folders
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.store import Store


def reset_slots(fs: DurableFS, state_dir: Path, slots: Sequence[str] | None) -> list[str]:
    """Empty slots, as :meth:`~edgepack_runtime.activation.agent.SlotAgent.reset` does.

    Whoever calls holds the state folder's lock. It may be called again after a power cut.

    Args:
        fs: All file changes go through it.
        state_dir: The state folder.
        slots: Their names; None for all of them, and for what was captured.

    Returns:
        The slots that were emptied.

    Raises:
        DeviceError: There is no such slot (code ``no-slot``), or the disk failed.
    """
    found = {folder.name: folder for folder in slot_folders(state_dir)}
    unknown = sorted(set(slots or ()) - found.keys())
    if unknown:
        there = ", ".join(found) or "none"
        raise DeviceError(
            f"there is no slot {unknown[0][:80]!r}; there are: {there}", code="no-slot"
        )
    for name in slots if slots is not None else found:
        _reset(fs, found[name])
    if slots is None:
        clear(fs, state_dir / FOLDER)
    return sorted(slots if slots is not None else found)


def become_owner(folder: Path) -> None:
    """Let root act as the user whose daemon uses a folder, so that it can read what is written.

    Raises:
        PermissionError: The folder is somebody else's.
    """
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def _reset(fs: DurableFS, folder: Path) -> None:
    journal, store = Journal(fs, folder), Store(fs, folder)
    state = journal.load().state
    emptied = step(state, Wished(None, retry_blocked=state.blocked)).state
    # or the next start would tell of a crash, and of a slot that is no more
    journal.save(step(emptied, Stopped()).state)
    History(fs, folder).clear()
    fs.remove_tree(folder / CANDIDATE)
    store.prepare()
    store.collect(())
