"""The fleets that this user is logged in to: ``$XDG_CONFIG_HOME/edgepack/contexts.toml``.

The file holds tokens, so it is readable by its owner only, and is not used when it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.main import CONTEXT_VARIABLE
from edgepack_contract.atomic import replacing_private
from edgepack_contract.loopback import is_loopback
from edgepack_contract.names import is_id
from edgepack_contract.settings import convert, read_toml

FILE = "contexts.toml"

_TOKEN = re.compile(r"\A[\x21-\x7e]{1,1024}\Z")
_NO_NAME = re.compile(r"[^a-z0-9]+")


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fleet: where it is, who we are there, and whom to believe that it is it.

    ``authorities`` are certificates in PEM form, none for those of the system; ``owner`` is the
    fingerprint that was pinned.
    """

    url: str
    token: str | None = None
    owner: str | None = None
    authorities: tuple[str, ...] = ()


class Contexts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every fleet by name, and the one that commands go to."""

    current: str | None = None
    contexts: dict[str, Site] = {}

    def find(self, name: str) -> Site:
        """One fleet by name.

        Raises:
            CommandError: There is none.
        """
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise CommandError(
                f"there is no context {name[:80]!r}; there are: {known}. `edgepack login URL "
                "--context NAME` makes one",
                exit_code=Exit.USAGE,
            )
        return self.contexts[name]

    def having(self, name: str, site: Site) -> Contexts:
        """These and one more, which commands go to from now on."""
        return Contexts(current=name, contexts=self.contexts | {name: site})

    def without(self, name: str) -> Contexts:
        """These without one."""
        rest = {key: site for key, site in self.contexts.items() if key != name}
        return Contexts(current=None if self.current == name else self.current, contexts=rest)


def contexts_path(environ: Mapping[str, str]) -> Path | None:
    """Where contexts are kept; None when the environment has no home."""
    base, home = environ.get("XDG_CONFIG_HOME"), environ.get("HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "edgepack" / FILE
    return Path(home) / ".config" / "edgepack" / FILE if home else None


def read_contexts(path: Path | None) -> Contexts:
    """The contexts of a file; none when there is no file.

    Raises:
        CommandError: Others can read or replace it.
        ConfigError: It is not a file of contexts.
    """
    if path is None or not path.exists():
        return Contexts()
    for one, forbidden, mode in ((path, 0o077, "600"), (path.parent, 0o022, "700")):
        found = one.stat().st_mode
        if found & forbidden:
            raise CommandError(
                f"{one} is open to others (mode {found & 0o777:04o}), and tokens are in it; run: "
                f"chmod {mode} {one}",
                exit_code=Exit.CONFIG,
                code="open-to-others",
            )
    return convert(read_toml(path), Contexts, what=str(path))


def write_contexts(path: Path | None, contexts: Contexts) -> None:
    """Replace the file, whole or not at all; nobody else can read it.

    Raises:
        CommandError: The environment has no home to keep it in.
    """
    if path is None:
        raise CommandError(
            "neither HOME nor XDG_CONFIG_HOME is set, so a login cannot be kept; set "
            "EDGEPACK_FLEET and EDGEPACK_TOKEN instead",
            exit_code=Exit.USAGE,
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing_private(path) as stream:
        stream.write(_toml(contexts).encode())


def selected(environ: Mapping[str, str]) -> Site | None:
    """The fleet of ``EDGEPACK_CONTEXT``, else the current one; None when there is neither.

    Raises:
        CommandError: There is no such context, or others can read the file.
        ConfigError: It is not a file of contexts.
    """
    contexts = read_contexts(contexts_path(environ))
    name = environ.get(CONTEXT_VARIABLE) or contexts.current
    return None if name is None else contexts.find(name)


def check_url(text: str, *, what: str) -> str:
    """The address of a fleet service, without a slash at its end.

    Raises:
        CommandError: It is no URL of a service, or plain http to another machine.
    """
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    plain = parts.path or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not host or plain:
        raise CommandError(
            f"{what} is {text[:120]!r}, expected http://HOST:PORT or https://HOST",
            exit_code=Exit.USAGE,
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise CommandError(
            f"{what} is {url}: plain http would show the token to everybody on the way; use https",
            exit_code=Exit.USAGE,
            code="insecure",
        )
    return url


def check_token(text: str) -> str:
    """A token as somebody pasted it.

    Raises:
        CommandError: It cannot be one; the message does not repeat it.
    """
    token = text.strip()
    if not _TOKEN.match(token):
        raise CommandError(
            "that is not a token: it is one word, such as epa_...; `edgepack token create` and "
            "`edgepack fleet token` print one",
            exit_code=Exit.USAGE,
        )
    return token


def check_name(name: str) -> str:
    """The name of a context.

    Raises:
        CommandError: It is not acceptable.
    """
    if not is_id(name):
        raise CommandError(
            f"context {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'", exit_code=Exit.USAGE
        )
    return name


def name_of(url: str) -> str:
    """What a fleet is called when nobody says: its host."""
    host = urlsplit(url).hostname or ""
    return "local" if is_loopback(host) else _NO_NAME.sub("-", host.lower()).strip("-")[:63]


def _toml(contexts: Contexts) -> str:
    lines = [] if contexts.current is None else [f"current = {_text(contexts.current)}"]
    for name, site in sorted(contexts.contexts.items()):
        lines += ["", f"[contexts.{_text(name)}]", f"url = {_text(site.url)}"]
        lines += [] if site.token is None else [f"token = {_text(site.token)}"]
        lines += [] if site.owner is None else [f"owner = {_text(site.owner)}"]
        if site.authorities:
            lines.append(f"authorities = [{', '.join(map(_text, site.authorities))}]")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    # a JSON string of ASCII is a basic string of TOML
    return json.dumps(value)
