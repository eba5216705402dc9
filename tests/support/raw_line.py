"""One connection of HTTP, written byte by byte."""

from __future__ import annotations

import socket

DEADLINE = 30.0


class Line:
    """What is sent is sent as it is; answers are read one by one."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self._read = self.socket.makefile("rb")

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def answer(self) -> tuple[bytes, dict[bytes, bytes], bytes]:
        status = self._read.readline()
        while status.startswith(b"HTTP/1.1 100"):
            assert self._read.readline() == b"\r\n"
            status = self._read.readline()
        headers = {}
        while (line := self._read.readline()).strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        body = self._read.read(int(headers.get(b"content-length", b"0")))
        return status, headers, body

    def rest(self) -> bytes:
        return self._read.read()

    def close(self) -> None:
        self._read.close()
        self.socket.close()
