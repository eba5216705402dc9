"""The other end of the control socket: what a command asks of the running daemon."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgepack_contract.limits import MIB
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.local.control import SOCKET
from edgepack_runtime.local.view import DeviceView
from edgepack_runtime.serving.sockets import short_path

T = TypeVar("T")

ANSWER_BYTES = 16 * MIB
SECONDS = 30.0
_BODY_HEADERS = {"content-type": "application/json"}


class NoDaemonError(DeviceError):
    """No daemon listens on the control socket of a state folder."""

    default_code = "no-daemon"


class RefusedError(DeviceError):
    """The daemon says no; ``blame`` is what it blames: bundle, source, config, request, device."""

    def __init__(self, message: str, *, code: str, blame: str) -> None:
        super().__init__(message, code=code)
        self.blame = blame


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as address:
            self.sock.connect(address)


class Asking:
    """Asks the daemon of one state folder.

    Args:
        state_dir: The folder.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / SOCKET

    def view(self) -> DeviceView:
        """How the device is now; errors as :meth:`ask`."""
        return self.ask("GET", "status", None, DeviceView)

    def ask(self, method: str, what: str, order: Any, shape: type[T]) -> T:
        """Ask for one thing.

        Args:
            method: GET or POST.
            what: The path's end, such as ``install``.
            order: What is sent, None for nothing.
            shape: What the answer is.

        Raises:
            NoDaemonError: None listens.
            RefusedError: It says no.
            DeviceError: The socket is somebody else's, or the answer is none.
        """
        body = msgspec.json.encode(order) if order is not None else None
        status, raw = self.fetch(method, f"/control/v1/{what}", body)
        try:
            if status == 200:
                return msgspec.json.decode(raw, type=shape)
            told = msgspec.json.decode(raw, type=dict[str, str])
        except msgspec.MsgspecError as error:
            raise DeviceError(
                f"the daemon at {self._path} speaks another version: {error}", code="other-version"
            ) from error
        raise RefusedError(
            told.get("error", f"status {status}"),
            code=told.get("code", "refused"),
            blame=told.get("blame", "device"),
        )

    def fetch(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the body of an answer; errors as :meth:`ask`."""
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, body, _BODY_HEADERS if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_BYTES)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemonError(f"no daemon runs on {self._path.parent}") from error
        except PermissionError as error:
            raise DeviceError(
                f"{self._path} is for the daemon's user and root: run this with sudo",
                code="not-permitted",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise DeviceError(f"the daemon at {self._path} does not answer: {error}") from error
        finally:
            connection.close()
