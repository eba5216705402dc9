"""Which repository of which registry, and how it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgepack_packager.errors import RecipeError

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?|\[[0-9a-fA-F:]{2,45}\])(?::\d{1,5})?"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"\A(?P<host>{_HOST})/(?P<repository>{_PATH}(?:/{_PATH})*)"
    r"(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """``HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]``; nothing is assumed where nothing is said."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference as the distribution specification writes it.

        Raises:
            RecipeError: It is none.
        """
        found = _REFERENCE.match(text)
        if found is None or len(text) > 512:
            raise RecipeError(
                f"{text[:200]!r} is not of the form REGISTRY[:PORT]/REPOSITORY[:TAG], all of the "
                "repository in lower case",
                code="bad-reference",
            )
        return cls(**found.groupdict())

    def __str__(self) -> str:
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{f':{self.tag}' if self.tag else ''}{digest}"


@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is reached.

    Attributes:
        user: Who logs in; None for what docker's configuration knows, else nobody.
        password: The password of ``user``.
        plain_http: Whether it is asked without TLS; None for loopback alone.
        authority: A file with the authority that its certificate must be of.
    """

    user: str | None = None
    password: str | None = None
    plain_http: bool | None = None
    authority: Path | None = None
