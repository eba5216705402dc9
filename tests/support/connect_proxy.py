"""An HTTP proxy for tests."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def connect_proxy(port: int, seen: list[str]) -> Iterator[str]:
    """A proxy that leads every CONNECT to one port, and its address with a password in it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, socket.create_connection(("127.0.0.1", port)) as server:
                    seen.append(client.recv(4096).decode())
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    splice(client, server)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://ann:secret@127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def splice(one: socket.socket, other: socket.socket) -> None:
    peers = {one: other, other: one}
    with suppress(OSError):
        while True:
            for ready in select.select(list(peers), [], [], 20.0)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                peers[ready].sendall(data)
