"""Debian's ``docker-registry`` on loopback: with a login, with TLS, or neither."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
version: 0.1
log: {{level: info, formatter: text}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:0"{tls}}}
{auth}
"""
USER, PASSWORD = "carol", "s3cret"
HTPASSWD = "carol:$2y$05$IahQZM1aeAXL8WkOimrsC.ZJFDmDU3HCxGDVQXjP6mTBuLHBAdkWy\n"
"""bcrypt of the password above, the only scheme that docker-registry reads."""


@contextmanager
def registry(folder: Path, *, login: bool = False, tls: str = "") -> Iterator[str]:
    """The address of an empty registry that is gone after the block."""
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: r, path: {folder / 'htpasswd'}}}}}" if login else ""
    config = folder / "registry.yml"
    config.write_text(CONFIG.format(folder=folder / "data", tls=tls, auth=auth))
    process = subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    said: queue.Queue[str] = queue.Queue()

    def pass_on() -> None:
        with process.stderr as log:
            for line in log:
                said.put(line)
        said.put("")

    reader = threading.Thread(target=pass_on)
    reader.start()
    try:
        while line := said.get(timeout=30):
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                yield found[1]
                return
        raise AssertionError("the registry ended without listening")
    finally:
        process.kill()
        process.wait()
        reader.join()
