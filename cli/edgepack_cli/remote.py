"""Run ``edgepack bench`` on another machine, by OpenSSH's own client.

One session does it all: the bundle goes in on standard input, the JSON comes back on standard
output, and the shell there removes its folder however it ends. ssh asks nothing, forwards nothing
and believes no host that is not known.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import click

from edgepack_cli.errors import CommandError, Exit
from edgepack_contract.benchmark import Benchmark, read_benchmark
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.limits import LIMITS

OPTIONS = (
    "BatchMode=yes", "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes",
    "PermitLocalCommand=no", "ControlPath=none", "ConnectTimeout=15", "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)  # fmt: skip

SCRIPT = """\
set -u
umask 077
folder=$(mktemp -d) || exit 97
trap 'rm -rf "$folder"' EXIT
trap 'exit 96' HUP INT TERM
cat > "$folder/bundle.edgepack" || exit 97
{command} bench --json "$folder/bundle.edgepack" {options}
"""
NO_ROOM, USAGE, NO_COMMAND, NO_CONNECTION = 97, 2, 127, 255

_USER = re.compile(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_HOST = re.compile(r"\A[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,254}\Z")
_TOLD_CHARACTERS = 400

_CAUSES = (
    ("Host key verification failed", "host-unknown",
     "its host key is not known, or changed; compare its fingerprint and log in once by hand"),
    ("REMOTE HOST IDENTIFICATION", "host-unknown", "its host key is another one than the known"),
    ("Permission denied", "ssh-refused",
     "it accepts none of your keys; edgepack never types a password: set up a key (ssh-copy-id)"),
    ("Could not resolve", "no-host", "there is no host of that name"),
    ("Name or service not known", "no-host", "there is no host of that name"),
    ("Connection refused", "no-connection", "no ssh server answers on that port"),
    ("timed out", "no-connection", "it does not answer"),
    ("No route to host", "no-connection", "there is no way to it"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemoteShell:
    """A machine that ssh reaches, and how edgepack is called there.

    ``command`` is split into words as a shell does, and each is quoted on the way.
    """

    host: str
    user: str | None = None
    port: int | None = None
    command: str = "edgepack"
    config: Path | None = None

    @classmethod
    def parse(cls, address: str, *, command: str = "edgepack", config: Path | None = None) -> Self:
        """Read ``ssh://[USER@]HOST[:PORT]``.

        Raises:
            click.UsageError: It has another form.
        """
        wrong = click.UsageError(f"--on {address!r} is not of the form ssh://[USER@]HOST[:PORT]")
        try:
            parts = urlsplit(address)
            host, user, port = parts.hostname, parts.username, parts.port
        except ValueError as error:
            raise wrong from error
        odd = parts.password or parts.query or parts.fragment or parts.path.strip("/")
        if parts.scheme != "ssh" or odd or not host or not _HOST.match(host):
            raise wrong
        if user is not None and not _USER.match(user):
            raise wrong
        if not shlex.split(command):
            raise click.UsageError("--remote-command is empty")
        return cls(host, user, port, command, config)

    def arguments(self, options: Sequence[str]) -> list[str]:
        """The arguments of ssh for a benchmark with ``options``."""
        script = SCRIPT.format(
            command=shlex.join(shlex.split(self.command)), options=shlex.join(options)
        )
        return [
            "ssh", "-T",
            *(["-F", str(self.config)] if self.config else []),
            *(part for option in OPTIONS for part in ("-o", option)),
            *(["-p", str(self.port)] if self.port else []),
            *(["-l", self.user] if self.user else []),
            "--", self.host, f"exec sh -c {shlex.quote(script)}",
        ]  # fmt: skip


def bench_there(
    shell: RemoteShell, bundle: Path, options: Sequence[str], *, timeout_s: float
) -> Benchmark:
    """Send a bundle, measure it there, and bring the figures back.

    Args:
        shell: Where.
        bundle: The file.
        options: Options of ``edgepack bench``.
        timeout_s: The most seconds that all of it may take.

    Raises:
        CommandError: It could not be done; the message says whether ssh, the host, or edgepack
            there is to blame.
    """
    with bundle.open("rb") as stream:
        try:
            done = subprocess.run(  # noqa: S603 - ssh with a checked destination and quoted words
                shell.arguments(options),
                stdin=stream,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise CommandError(
                "there is no ssh on this machine; install OpenSSH's client", code="no-ssh"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"{shell.host} was not done within {timeout_s:g} s; --timeout gives it longer",
                code="remote-timeout",
            ) from error
    return read_answer(shell, done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def read_answer(shell: RemoteShell, code: int, out: bytes, err: str) -> Benchmark:
    """What came back: the figures, or an error that says whose fault it is.

    Args:
        shell: Where it ran.
        code: How ssh, or the command there, ended.
        out: Standard output.
        err: Standard error.

    Raises:
        CommandError: No figures.
    """
    if out.strip():
        try:
            return read_benchmark(out[: LIMITS.message_bytes + 1])
        except MalformedDocumentError as error:
            raise CommandError(
                f"{shell.host} answers something else than figures ({error}); is another version "
                f"of edgepack there? Compare: {shell.command} --version",
                code="other-version",
            ) from error
    raise _failed(shell, code, err)


def _failed(shell: RemoteShell, code: int, err: str) -> CommandError:
    host = shell.host
    if code == NO_CONNECTION:
        return _unreachable(host, err)
    if code == NO_COMMAND:
        return CommandError(
            f"{host} has no {shell.command!r}; install it there (pip install 'edgepack[runtime]'), "
            "or name it with --remote-command /path/to/edgepack",
            code="no-edgepack",
        )
    if code == USAGE and ("No such command" in err or "No such option" in err):
        return CommandError(
            f"the edgepack of {host} is too old to measure: {_last(err)}; update it there",
            code="old-version",
        )
    if code == NO_ROOM:
        return CommandError(f"{host} has no room for the bundle: {_last(err)}", code="no-room")
    told = {Exit.BUDGET, Exit.VERIFICATION, Exit.INCOMPATIBLE}
    return CommandError(
        f"edgepack bench on {host} ended with code {code}: {_last(err) or 'it said nothing'}",
        exit_code=Exit(code) if code in told else Exit.BAD_INPUT,
        code="remote-failed",
    )


def _unreachable(host: str, err: str) -> CommandError:
    for sign, code, words in _CAUSES:
        if sign in err:
            return CommandError(f"ssh to {host} failed: {words}", code=code)
    return CommandError(f"ssh to {host} failed: {_last(err)}", code="no-connection")


def _last(err: str) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    # anybody's bytes, which end on a terminal
    return ascii(lines[-1][:_TOLD_CHARACTERS])[1:-1] if lines else ""
