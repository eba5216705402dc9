"""A child process that loads what only code can load, shut in where the kernel allows it.

Nothing of it is trusted: what it says is bounded, has a deadline, and is data.
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from edgepack_contract.limits import GIB, MIB
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources import enclosure
from edgepack_packager.sources.wire import LENGTH_BYTES, Hello

_KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LAST_WORDS = 500
_CHUNK_BYTES = 1 * MIB
_ENDING_SECONDS = 10.0
_MODULES = 500


def _memory_bytes() -> int:
    """Three quarters of this machine's memory, so that the build itself survives."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may take: bytes of data memory, of one reply, and seconds for one request."""

    memory_bytes: int
    reply_bytes: int = 2 * GIB + 64 * MIB
    seconds: float = 900.0

    @classmethod
    def of_this_machine(cls) -> ChildLimits:
        """Limits that leave the machine usable."""
        return cls(memory_bytes=_memory_bytes())


class Child:
    """A child that answers requests, one at a time, until it is forgotten or fails.

    Args:
        what: What it loads, for messages.
        visible: Files and folders that it may read besides the interpreter's.
        folder: A place for its files.
        enclosed: Whether to shut it in.
        limits: What it may take.

    Raises:
        ModelSourceError: ``no-sandbox``: it cannot be shut in here.
    """

    def __init__(
        self,
        what: str,
        *,
        visible: Sequence[Path],
        folder: Path,
        enclosed: bool,
        limits: ChildLimits,
    ) -> None:
        self._what = what
        self._limits = limits
        plan = _plan(visible, folder, enclosed=enclosed, limits=limits)
        self._process, lifeline = _start(plan, _environment(folder, enclosed=enclosed))
        # when the build forgets the model, or ends in whatever way, its child ends too
        self._end = weakref.finalize(self, _end, self._process, lifeline)
        self._errors = b""
        hello = self._receive_hello()
        if hello.why:
            self._end()
            raise ModelSourceError(
                f"{what} cannot be loaded apart from everything else on this machine: {hello.why}",
                code="no-sandbox",
            )

    def ask(self, request: bytes) -> bytes:
        """Send one message and return the reply.

        Raises:
            ModelSourceError: It died, took too long, or said too much.
        """
        frame = struct.pack(">Q", len(request)) + request
        return self._exchange(memoryview(frame))

    def end(self) -> None:
        """End it now."""
        self._end()

    def _receive_hello(self) -> Hello:
        try:
            return msgspec.json.decode(self._exchange(memoryview(b"")), type=Hello)
        except msgspec.DecodeError as error:
            self._end()
            raise ModelSourceError(
                f"the process that loads {self._what} cannot start: {error}", code="source-died"
            ) from error

    def _exchange(self, request: memoryview) -> bytes:
        try:
            return self._transfer(request, time.monotonic() + self._limits.seconds)
        except (BrokenPipeError, EOFError):
            raise self._death() from None
        except BaseException:
            # a late or unfinished reply must not be taken for the next one's
            self._end()
            raise

    def _transfer(self, request: memoryview, deadline: float) -> bytes:
        """Write and read at once: a child that does not read must not hold up its deadline."""
        pipes = self._process
        if pipes.stdin is None or pipes.stdout is None or pipes.stderr is None:
            raise ValueError("a child is started with three pipes")
        reply, wanted = bytearray(), None
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipes.stdout, selectors.EVENT_READ)
            waiting.register(pipes.stderr, selectors.EVENT_READ)
            if request:
                waiting.register(pipes.stdin, selectors.EVENT_WRITE)
            while wanted is None or len(reply) < LENGTH_BYTES + wanted:
                for key, _ in self._wait(waiting, deadline):
                    if key.fileobj is pipes.stdin:
                        request = request[os.write(key.fd, request[:_CHUNK_BYTES]) :]
                        if not request:
                            waiting.unregister(pipes.stdin)
                    elif key.fileobj is pipes.stderr:
                        self._hear(key.fd, waiting, pipes.stderr)
                    else:
                        reply += _read(key.fd)
                        wanted = self._announced(reply)
        if len(reply) > LENGTH_BYTES + wanted:
            raise self._refusal("said more than one reply", "source-garbled")
        return bytes(memoryview(reply)[LENGTH_BYTES:])

    def _wait(
        self, waiting: selectors.BaseSelector, deadline: float
    ) -> list[tuple[selectors.SelectorKey, int]]:
        events = waiting.select(max(0.0, deadline - time.monotonic()))
        if not events:
            raise self._refusal(f"was not done within {self._limits.seconds:g} s", "source-timeout")
        return events

    def _announced(self, reply: bytearray) -> int | None:
        if len(reply) < LENGTH_BYTES:
            return None
        wanted: int = struct.unpack(">Q", reply[:LENGTH_BYTES])[0]
        if wanted > self._limits.reply_bytes:
            raise self._refusal(
                f"announced {wanted} bytes; {self._limits.reply_bytes} are allowed",
                "source-too-large",
            )
        return wanted

    def _hear(self, descriptor: int, waiting: selectors.BaseSelector, stream: IO[bytes]) -> None:
        try:
            self._errors = (self._errors + _read(descriptor))[-_LAST_WORDS:]
        except EOFError:
            waiting.unregister(stream)

    def _refusal(self, did: str, code: str) -> ModelSourceError:
        return ModelSourceError(f"the process that loads {self._what} {did}", code=code)

    def _death(self) -> ModelSourceError:
        with suppress(subprocess.TimeoutExpired):
            # what it ended with is of interest, and cutting the lifeline would hide it
            self._process.wait(_ENDING_SECONDS)
        self._end()
        last = self._errors.decode(errors="replace").strip().splitlines()
        words = f"; its last words: {last[-1]}" if last else ""
        status = self._process.returncode
        return self._refusal(f"ended with status {status} before it answered{words}", "source-died")


def _plan(
    visible: Sequence[Path], folder: Path, *, enclosed: bool, limits: ChildLimits
) -> dict[str, object]:
    root = folder / "enclosure"
    root.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    shown = [*visible, *_interpreter(here), *_modules_of(here)]
    return {
        "enclosed": enclosed,
        "visible": _outermost(shown),
        "root": str(root.resolve()),
        "modules": str(here),
        "memory_bytes": limits.memory_bytes,
    }


def _interpreter(here: Path) -> list[Path]:
    """Where Python, its packages and their libraries are, but not the current folder."""
    texts = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]
    texts += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    # links to files elsewhere must lead somewhere, so both ends are shown
    given = [Path(text) for text in texts if text]
    paths = [*(path.absolute() for path in given), *(path.resolve() for path in given)]
    return [path for path in paths if path.exists() and path not in {here, Path("/")}]


def _modules_of(folder: Path) -> list[Path]:
    """The Python modules in ``folder``, which a pickle may name; keys and data stay unseen."""
    found = [path for path in sorted(folder.iterdir()) if not path.is_symlink()]
    modules = [path for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return modules[:_MODULES]


def _outermost(paths: Sequence[Path]) -> list[str]:
    kept: list[Path] = []
    for path in sorted(set(paths), key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(outer) for outer in kept):
            kept.append(path)
    return [str(path) for path in kept]


def _environment(folder: Path, *, enclosed: bool) -> Mapping[str, str]:
    """What a child may know: no key, token or passphrase stands in these."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    home = enclosure.SCRATCH if enclosed else str(folder.resolve())
    return {
        **kept,
        **dict.fromkeys(_ONE_THREAD, "1"),
        "HOME": home,
        "TMPDIR": home,
        "CUDA_VISIBLE_DEVICES": "",
        "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        # tf2onnx goes through sets: their order must be the same in every build
        "PYTHONHASHSEED": "0",
    }


def _start(
    plan: Mapping[str, object], environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the lifeline: it ends when that closes."""
    theirs, ours = os.pipe()
    # -P: the current folder is nobody's package
    command = [sys.executable, "-P", enclosure.__file__, json.dumps(plan), str(theirs)]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(environment),
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(ours)
        raise ModelSourceError(f"no child process can be started: {error}") from error
    finally:
        os.close(theirs)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
    return process, ours


def _end(process: subprocess.Popen[bytes], lifeline: int) -> None:
    os.close(lifeline)
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read(descriptor: int) -> bytes:
    data = os.read(descriptor, _CHUNK_BYTES)
    if not data:
        raise EOFError
    return data
