"""The command line, called as a shell would call it, and a fleet for it to talk to."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from fleet_http import open_fleet, served

from edgepack_cli.main import run


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


def edgepack(*arguments: object, typed: str = "") -> Ended:
    """Run ``edgepack`` as ``main`` does; ``typed`` answers its prompts."""
    with CliRunner().isolation(input=typed) as (out, err, _):
        code = run([str(one) for one in arguments])
        return Ended(code, out.getvalue().decode(), err.getvalue().decode())


@pytest.fixture
def cli():
    """Calls the command line."""
    return edgepack


@pytest.fixture
def keys(tmp_path):
    """A folder with the three keys and the keyring, and the owner's fingerprint."""
    folder = tmp_path / "keys"
    made = edgepack("keys", "init", folder, "--no-passphrase")
    assert made.code == 0, made.err
    return folder, made.out.split()[1]


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A real fleet API over HTTP; the environment says where it is and lets us do everything."""
    home = tmp_path / "fleet"
    home.mkdir()
    with open_fleet(home) as fleet, served(fleet) as address:
        monkeypatch.setenv("EDGEPACK_FLEET", address)
        monkeypatch.setenv("EDGEPACK_TOKEN", fleet.tokens["admin"])
        yield fleet


@pytest.fixture
def nowhere(monkeypatch):
    """The address of a fleet that does not answer: a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("EDGEPACK_FLEET", address)
    monkeypatch.setenv("EDGEPACK_TOKEN", "t")
    return address


@pytest.fixture
def altered():
    """Changes one byte in the middle of a file's largest part."""

    def change(path: Path, to: Path) -> Path:
        data = bytearray(path.read_bytes())
        data[data.index(b"a graph")] ^= 1
        to.write_bytes(data)
        return to

    return change
