"""The files of a device's membership, put in place so that a crash at any point does no harm.

Everything is first written below ``enrolling/``, then ``device.toml.new``, which says that it is
all there; then all is moved into the folder, ``device.toml`` last: where it is, the device is
enrolled. Whoever is enrolled anew keeps the former files below ``before-KEY/``, and the state with
them: its documents and sessions are of a device that is no more.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgepack_contract.enrolment import JoinString, Membership
from edgepack_contract.errors import ConfigError
from edgepack_contract.keys import PrivateKey, PublicKey, read_private_key
from edgepack_contract.settings import convert
from edgepack_runtime.config import RuntimeConfig, load_config
from edgepack_runtime.process import only_one
from edgepack_runtime.storage.fsio import DurableFS

CONFIG_FILE = "device.toml"
KEY_FILE = "device.key"
PUBLIC_KEY_FILE = "device.pub"
MAC_KEY_FILE = "mac.key"
KEYRING_FILE = "keyring.json"
CERTIFICATE_FILE = "device.pem"
STATE_FOLDER = "state"
STAGED_FOLDER = "enrolling"

_READY = f"{CONFIG_FILE}.new"
_MOVED = (KEY_FILE, MAC_KEY_FILE, KEYRING_FILE, CERTIFICATE_FILE)
_OTHERS_WRITE = 0o022


class EnrolFolder:
    """The folder of one device.

    Args:
        fs: All changes go through it.
        home: The folder.
    """

    def __init__(self, fs: DurableFS, home: Path) -> None:
        self._fs, self._home = fs, home
        self._staged = home / STAGED_FOLDER
        self.config = home / CONFIG_FILE

    @property
    def is_enrolled(self) -> bool:
        """Whether there is a complete enrolment."""
        return self.config.exists()

    @property
    def is_ready(self) -> bool:
        """Whether an enrolment needs only to be put in place."""
        return (self._home / _READY).exists()

    @contextmanager
    def held(self, *, again: bool) -> Iterator[None]:
        """Make the folder when there is none, and keep it for this process.

        Args:
            again: Replace what is enrolled here.

        Raises:
            ConfigError: Others can write it or we cannot (``bad-folder``), it is used by another
                enrolment or by the daemon (``in-use``), or it is enrolled and ``again`` was not
                said (``enrolled``).
            DeviceError: It cannot be written.
        """
        _check_place(self._home)
        self._fs.make_dirs(self._home)
        handle = _locked(self._home)
        try:
            if self.is_enrolled and not again:
                raise self._enrolled()
            with self._daemon_kept_out():
                self._clean()
                yield
        finally:
            os.close(handle)

    def key(self) -> PrivateKey:
        """This device's key: of an attempt before, or one that was put here, or a new one.

        Raises:
            SigningKeyError: The key that is there cannot be used.
            DeviceError: It cannot be written.
        """
        for path in self._key_places():
            if path.exists():
                return read_private_key(path)
        self._fs.make_dirs(self._staged)
        key = PrivateKey.generate()
        self._fs.atomic_write(self._staged / KEY_FILE, key.pem())
        return key

    def publish_key(self) -> PublicKey:
        """Write the public half of this device's key beside it, for an operator to take along.

        Raises:
            SigningKeyError: The key that is there cannot be used.
            DeviceError: It cannot be written.
        """
        public = self.key().public
        self._fs.atomic_write(self._home / PUBLIC_KEY_FILE, public.pem)
        return public

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Write down an enrolment and put it in place.

        Raises:
            DeviceError: It cannot be written; calling :meth:`finish` later may succeed.
        """
        self._fs.make_dirs(self._staged)
        for leftover in sorted(self._staged.iterdir()):
            if leftover.name != KEY_FILE:
                self._fs.remove_tree(leftover)
        for name in _MOVED:
            if name in files:
                self._fs.atomic_write(self._staged / name, files[name])
        self._fs.atomic_write(self._home / _READY, files[CONFIG_FILE])
        self.finish()

    def finish(self) -> None:
        """Put in place what is ready, also after a crash in the middle of that.

        Raises:
            DeviceError: It cannot be written; calling this again may succeed.
        """
        if self.is_enrolled:
            self._put_aside()
        for name in _MOVED:
            if (self._staged / name).exists():
                self._fs.rename(self._staged / name, self._home / name)
        self._fs.remove_tree(self._staged)
        self._fs.rename(self._home / _READY, self.config)

    def _clean(self) -> None:
        for folder in (self._home, self._staged):
            if folder.is_dir():
                self._fs.clean_temporaries(folder)

    def _key_places(self) -> Iterator[Path]:
        yield self._staged / KEY_FILE
        if not self.is_enrolled:
            yield self._home / KEY_FILE

    def _put_aside(self) -> None:
        # the folder is named after the new key, so that a second attempt goes on where one ended
        key = read_private_key(self._staged / KEY_FILE)
        former = self._home / f"before-{key.public.fingerprint[:16]}"
        self._fs.make_dirs(former)
        for name in (STATE_FOLDER, *_MOVED, CONFIG_FILE):
            if (self._home / name).exists():
                self._fs.rename(self._home / name, former / name)

    @contextmanager
    def _daemon_kept_out(self) -> Iterator[None]:
        state = self._state_dir()
        if not state.is_dir():
            yield
            return
        with only_one(state):
            yield

    def _state_dir(self) -> Path:
        try:
            return Path(load_config(self.config, {}).state_dir)
        except ConfigError:
            # a broken configuration may well be why it is enrolled anew
            return self._home / STATE_FOLDER

    def _enrolled(self) -> ConfigError:
        unfinished = " (an unfinished re-enrolment is there: --again ends it)"
        return ConfigError(
            f"{self._home} is enrolled already{unfinished if self.is_ready else ''}; look at it "
            f"with: edgepack enrol --check {self._home}; or give --again to enrol it anew, with "
            "another key",
            code="enrolled",
        )


def membership_files(member: Membership, join: JoinString, *, port: int) -> dict[str, bytes]:
    """What a member keeps, by file name.

    Raises:
        ConfigError: The join string's URL cannot be written into a configuration.
    """
    files = {
        MAC_KEY_FILE: member.mac_key,
        KEYRING_FILE: member.keyring,
        CONFIG_FILE: device_toml(member, join, port=port),
    }
    if member.certificate is not None:
        files[CERTIFICATE_FILE] = member.certificate
    return {name: text.encode() for name, text in files.items()}


def device_toml(member: Membership, join: JoinString, *, port: int) -> str:
    """The configuration of a member; ``port`` is where it serves predictions on loopback."""
    identity = {
        "key": KEY_FILE, "mac_key": MAC_KEY_FILE, "keyring": KEYRING_FILE, "owner": join.owner,
    }  # fmt: skip
    if member.certificate is not None:
        identity["certificate"] = CERTIFICATE_FILE
    broker = member.broker
    text = _toml({
        "": {"device": member.device, "tenant": member.tenant, "state_dir": STATE_FOLDER},
        "identity": identity,
        "serve": {"host": "127.0.0.1", "port": port},
        "mqtt": {"host": broker.host, "port": broker.port, "tls": broker.tls},
        "fleet": {"url": join.url},
    })  # fmt: skip
    try:
        convert(tomllib.loads(text), RuntimeConfig, what="the new configuration")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{join.url!r} is no proper URL", code="bad-join") from error
    return text


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    # a JSON text, number or truth value is written the same in TOML
    blocks = []
    for table, values in tables.items():
        lines = [f"[{table}]"] if table else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _check_place(home: Path) -> None:
    there = next(path for path in (home, *home.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is not a folder; name another", code="bad-folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot write {there}; run this as the user that will run the daemon, and give that "
            "user the folder",
            code="bad-folder",
        )


def _locked(home: Path) -> int:
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & _OTHERS_WRITE:
            raise ConfigError(
                f"others can write {home}, and could put their own keys there; run: chmod 700 "
                f"{home}",
                code="bad-folder",
            )
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(
            f"another `edgepack enrol` is at work in {home}; wait for it", code="in-use"
        ) from error
    except ConfigError:
        os.close(handle)
        raise
    return handle
