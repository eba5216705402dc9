"""The support bundle: what is known of a device in one file, with no secrets in it.

Names are the same on every device; what could not be had is said in ``missing.json``.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import json
import os
import platform
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgepack_contract import __version__
from edgepack_contract.errors import EdgepackError
from edgepack_contract.hardware import this_machine
from edgepack_contract.limits import MIB
from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.capture.recorder import FOLDER
from edgepack_runtime.capture.ring import segments
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.local.asking import Asking
from edgepack_runtime.local.doctor import examine
from edgepack_runtime.local.looking import slot_folders
from edgepack_runtime.local.redaction import redact, secrets_of
from edgepack_runtime.local.view import DeviceView
from edgepack_runtime.storage.fsio import DurableFS

ROOT = "edgepack-support"
MOST_CAPTURE_BYTES = 64 * MIB
_PROC = ("/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/self/mountinfo")
_PROC_BYTES = 256 * 1024


@dataclass
class Collected:
    """Files of a support bundle by name, and why others are missing."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], bytes]) -> None:
        """Add what ``make`` gives, or say why it gives nothing."""
        try:
            self.files[name] = make()
        except (EdgepackError, OSError, ValueError) as error:
            self.missing[name] = f"{type(error).__name__}: {error}"


def collect(
    config: RuntimeConfig | None,
    state_dir: Path,
    view: DeviceView | None,
    *,
    with_capture: bool = False,
) -> dict[str, bytes]:
    """What goes into a support bundle: contents by name, secrets taken out.

    Args:
        config: The device's configuration, None when it cannot be read.
        state_dir: Its state folder.
        view: How it is.
        with_capture: Add captured inputs and outputs, which nothing is taken out of.
    """
    secrets = secrets_of(config, os.environ)
    asking, found = Asking(state_dir), Collected()
    lines: list[str] = []

    def logs() -> bytes:
        lines.extend(asking.ask("GET", "logs", None, list[str]))
        return "".join(f"{line}\n" for line in lines).encode()

    found.add("logs.jsonl", logs)
    found.add("metrics.txt", lambda: asking.fetch("GET", "/metrics")[1])
    found.add("status.json", lambda: _json(view))
    found.add("config.json", lambda: _json(config))
    found.add("doctor.json", lambda: _json(examine(config, state_dir, view, lines)))
    found.add("versions.json", lambda: _json(_versions()))
    found.add("machine.txt", lambda: "\n".join(_machine()).encode())
    found.add("environment.json", lambda: _json(_environment(os.environ)))
    _add_slots(found, state_dir)
    plain = {name: redact(raw.decode("utf-8", "replace"), secrets) for name, raw in
             found.files.items()}  # fmt: skip
    done = {name: text.encode() for name, text in plain.items()}
    if with_capture:
        done |= _capture(state_dir / FOLDER)
    done["missing.json"] = redact(json.dumps(found.missing, indent=1), secrets).encode()
    return done


def pack(files: Mapping[str, bytes]) -> bytes:
    """A ``.tar.gz`` of files below :data:`ROOT`; the same files give the same bytes."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{ROOT}/{name}")
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def _add_slots(found: Collected, state_dir: Path) -> None:
    fs = DurableFS()
    try:
        folders = slot_folders(state_dir)
    except PermissionError as error:
        found.missing["slots"] = str(error)
        return
    for folder in folders:
        found.add(f"slots/{folder.name}/state.json", partial(_state, fs, folder))
        found.add(f"slots/{folder.name}/history.json", partial(_history, fs, folder))


def _state(fs: DurableFS, folder: Path) -> bytes:
    return _json(Journal(fs, folder).peek().state)


def _history(fs: DurableFS, folder: Path) -> bytes:
    return _json(History(fs, folder).records())


def _capture(folder: Path) -> dict[str, bytes]:
    found, size = {}, 0
    for segment in reversed(segments(folder)):
        size += segment.stat().st_size
        if size > MOST_CAPTURE_BYTES:
            break
        found[f"capture/{segment.name}"] = segment.read_bytes()
    return found


def _versions() -> dict[str, Any]:
    packages = {one.name: one.version for one in importlib.metadata.distributions()}
    onnxruntime = packages.get("onnxruntime", "")
    return {
        "edgepack": __version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "hardware": this_machine(onnxruntime=onnxruntime),
        "packages": dict(sorted(packages.items())),
    }


def _machine() -> Iterator[str]:
    for path in map(Path, _PROC):
        yield f"== {path}"
        with path.open(encoding="utf-8", errors="replace") as stream:
            yield stream.read(_PROC_BYTES)


def _environment(environ: Mapping[str, str]) -> list[str]:
    """The names of the variables that change edgepack; never their values."""
    begins = ("EDGEPACK_", "ORT_", "MALLOC_", "OMP_")
    proxies = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY")
    return sorted(name for name in environ if name.startswith(begins) or name.upper() in proxies)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1)
