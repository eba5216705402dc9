"""A device whose disk fills up, and has room again: a real file system of a few megabytes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import pytest
from broker_process import Broker
from world_bundles import MODEL
from world_device import FLEET, Device, make_home, runs
from world_registry import two_versions
from world_waiting import eventually

from edgepack_contract.messages import Probation, Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind

QUICK = Probation(seconds=0.2, max_seconds=5.0, shadow_seconds=0.1)
ROOMY, SMALL = "200m", "3m"
"""Beside the reserve that an install leaves there is room, and is none."""


@pytest.fixture
def bundles(tmp_path):
    """Versions by name: digest and address."""
    with two_versions(tmp_path) as found:
        yield found


@pytest.fixture
def device(tmp_path):
    home, broker = tmp_path / "pi", Broker()
    make_home(home, "pi-1", broker.port)
    state = home / "state"
    state.mkdir(mode=0o700)
    mount("-t", "tmpfs", "-o", f"size={ROOMY},mode=0700", "tmpfs", state)
    device = Device(home, "pi-1", broker.port, FLEET)
    try:
        device.start()
        yield device
    finally:
        device.close()
        broker.kill()
        subprocess.run(["umount", "-l", str(state)], check=True)


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def remount(device, options):
    mount("-o", f"remount,{options}", device.home / "state")


def fill(device):
    """Leave no room for a byte, nor for a file."""
    ballast = device.home / "state" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    remount(device, f"size={SMALL},nr_inodes={used_inodes(device)}")


def used_inodes(device):
    found = os.statvfs(device.home / "state")
    return found.f_files - found.f_ffree


def tell(device, **slots):
    """Tell a device what its slots are to run; bundles are digest and address."""
    device.generation += 1
    wishes = {
        slot: SlotDesired(active=Ref(name=MODEL, digest=digest, sources=[source]), probation=QUICK)
        for slot, (digest, source) in slots.items()
    }
    desired = device.signed(device.document(wishes))
    device.send(device.topic(Kind.DESIRED), desired, retain=True)


def succeeded(said, slot, digest):
    found = said.slots.get(slot)
    return found is not None and (found.phase, found.running) == (Phase.SUCCEEDED, digest)


@pytest.mark.foreign("mount")
def test_a_full_disk_costs_an_install_and_no_prediction(device, bundles):
    old, new = bundles["1.0.0"], bundles["1.1.0"]
    tell(device, **{MODEL: old})
    device.hear_reported(runs(old[0]))

    # room for the records, none for a bundle: refused before a byte is fetched, and said
    remount(device, f"size={SMALL}")
    tell(device, **{MODEL: new})
    said = device.hear_reported(lambda said: said.slots[MODEL].phase is Phase.FAILED)
    slot = said.slots[MODEL]
    assert (slot.code, slot.running) == ("disk-full", old[0])
    assert "free" in slot.words
    assert device.version() == "1.0.0"

    # room for nothing: not even for the folders of another slot
    fill(device)
    tell(device, **{MODEL: old, "second": new})
    said = device.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith("disk-full: slot second waits for room: ")
    assert device.version() == "1.0.0"
    assert device.process.end(signal.SIGTERM) == 0
    # as a power cut leaves a slot whose folders are half made
    remount(device, f"nr_inodes={used_inodes(device) + 1}")
    (device.home / "state" / "slots" / "third").mkdir()
    device.start()
    device.process.wait_said("slot third waits for room")
    eventually(device.serves, "a prediction")
    device.hear_reported(lambda said: said.refused is not None)

    # there is room again, and nobody says anything
    (device.home / "state" / "ballast").unlink()
    remount(device, f"size={ROOMY},nr_inodes=10000")
    said = device.hear_reported(lambda said: succeeded(said, "second", new[0]))
    assert said.refused is None
    assert "third" in said.slots
    tell(device, **{MODEL: new, "second": new})
    device.hear_reported(runs(new[0]))
    assert device.version() == "1.1.0"
