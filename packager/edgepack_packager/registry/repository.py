"""Bundles in an OCI registry: pushed and pulled byte for byte.

Logins, credential helpers and tokens are oras's business; what is sent and believed is decided
here. Source of the endpoints: OCI distribution specification 1.1, "pull" and "push". Whatever a
registry answers is proven by digest before it counts.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import urlencode, urljoin, urlsplit

from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError, SourceError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from edgepack_packager.errors import RecipeError
from edgepack_packager.registry.reference import Access, Reference

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 8 * 1024 * 1024
MOST_CHUNK_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = (15.0, 60.0)
ATTEMPTS = 4
_TOLD_BYTES = 4096

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class RegistryRepository:
    """One repository; a :class:`~edgepack_contract.bundle.BlobSource`. Use it as a context manager.

    Args:
        reference: Which; tag and digest are ignored.
        access: How it is reached.
        sleep: Waits between attempts.

    Raises:
        RecipeError: Docker's configuration cannot be read.
    """

    def __init__(
        self,
        reference: Reference,
        access: Access,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.reference = reference
        self._sleep = sleep
        host = urlsplit(f"//{reference.host}").hostname or ""
        plain = is_loopback(host) if access.plain_http is None else access.plain_http
        scheme = "http" if plain else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}/"
        verify = str(access.authority) if access.authority else True
        self._session = _session(scheme)
        self._auth = _login(self._session, reference, access, plain=plain, verify=verify)
        self._verify = verify
        self._basic: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`.

        Raises:
            SourceError: It does not answer, or refuses.
            MalformedBundleError: More than a manifest may have, or other bytes than the digest's.
        """
        headers = {"Accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}"}
        with closing(self._ask("GET", f"manifests/{reference}", headers, stream=True)) as answer:
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return None
            self._require(answer, HTTPStatus.OK)
            raw = _read(answer, LIMITS.manifest_bytes, what=f"manifest {reference[:80]}")
        if reference.startswith("sha256:") and sha256_digest(raw) != reference:
            raise MalformedBundleError(
                f"{self.reference.host} answers {sha256_digest(raw)} for {reference}",
                code="wrong-digest",
            )
        return raw

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`; proven while it is read."""
        return io.BufferedReader(_BlobStream(self, descriptor), buffer_size=1024 * 1024)

    def blob_from(self, descriptor: Descriptor, offset: int) -> requests.Response:
        """The answer that brings a blob's bytes from ``offset`` on.

        Raises:
            SourceError: It does not answer, refuses, or has not got it.
        """
        # a registry that packs on the way would send other bytes than those of the digest
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        answer = self._ask("GET", f"blobs/{descriptor.digest}", headers, stream=True)
        partial = HTTPStatus.PARTIAL_CONTENT
        self._require(answer, *((partial,) if offset else (HTTPStatus.OK, partial)))
        return answer

    def tagged(self, tag: str) -> str | None:
        """The digest under a tag, None where there is none.

        Raises:
            SourceError: It does not answer, or refuses.
        """
        raw = self.resolve(tag)
        return None if raw is None else sha256_digest(raw)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob.

        Raises:
            SourceError: It does not answer, or refuses.
        """
        answer = self._ask("HEAD", f"blobs/{descriptor.digest}", {})
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return False
        self._require(answer, HTTPStatus.OK)
        return True

    def push_blob(self, descriptor: Descriptor, stream: BinaryIO, *, mount: str | None) -> bool:
        """Upload a blob, at once when it is small and else in chunks.

        Args:
            descriptor: Which.
            stream: Its bytes.
            mount: Another repository of the registry that may have it.

        Returns:
            False when it came from ``mount``.

        Raises:
            SourceError: It does not answer, or refuses.
        """
        query = {"mount": descriptor.digest, "from": mount} if mount else {}
        answer = self._ask("POST", f"blobs/uploads/?{urlencode(query)}", {"Content-Length": "0"})
        if answer.status_code == HTTPStatus.CREATED and mount:
            return False
        self._require(answer, HTTPStatus.ACCEPTED)
        wanted = answer.headers.get("OCI-Chunk-Min-Length", "")
        least = int(wanted) if wanted.isdecimal() and len(wanted) < 10 else 0
        size = min(max(CHUNK_BYTES, least), MOST_CHUNK_BYTES)
        place, data, offset = self._location(answer), stream.read(size), 0
        while offset + len(data) < descriptor.size and data:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{offset}-{offset + len(data) - 1}",
            }
            answer = self._ask("PATCH", place, headers, data=data)
            self._require(answer, HTTPStatus.ACCEPTED)
            offset += len(data)
            place, data = self._location(answer), stream.read(size)
        joined = "&" if urlsplit(place).query else "?"
        headers = {"Content-Type": "application/octet-stream"}
        if offset:
            headers["Content-Range"] = f"{offset}-{offset + len(data) - 1}"
        place = f"{place}{joined}{urlencode({'digest': descriptor.digest})}"
        self._require(self._ask("PUT", place, headers, data=data), HTTPStatus.CREATED)
        return True

    def push_manifest(self, name: str, media_type: str, raw: bytes) -> None:
        """Upload an index or a manifest, in its own bytes, under a tag or its digest.

        Raises:
            SourceError: It does not answer, or refuses.
        """
        headers = {"Content-Type": media_type}
        answer = self._ask("PUT", f"manifests/{name}", headers, data=raw)
        self._require(answer, HTTPStatus.CREATED)
        said = answer.headers.get("Docker-Content-Digest", sha256_digest(raw))
        if said != sha256_digest(raw):
            raise SourceError(
                f"{self.reference.host} keeps {name} as {said[:80]}, not as {sha256_digest(raw)}: "
                "it rewrites manifests, and no signature survives that",
                code="rewritten",
            )

    def _ask(
        self,
        method: str,
        place: str,
        headers: dict[str, str],
        *,
        data: bytes | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """One request, again where the registry is busy or broke off."""
        import requests  # noqa: PLC0415

        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(2.0 ** (attempt - 1))
            try:
                answer = self._authenticated(method, place, headers, data=data, stream=stream)
            except (requests.ConnectionError, requests.Timeout) as error:
                refused = isinstance(error, requests.exceptions.SSLError)
                if refused or attempt == ATTEMPTS - 1:
                    raise _unreachable(self.reference.host, error) from error
                continue
            except requests.RequestException as error:
                raise _unreachable(self.reference.host, error) from error
            if answer.status_code not in _BUSY or attempt == ATTEMPTS - 1:
                return answer
            answer.close()
        raise ValueError("there is at least one attempt")

    def _authenticated(
        self, method: str, place: str, headers: dict[str, str], *, data: bytes | None, stream: bool
    ) -> requests.Response:
        url = urljoin(self._base, place)
        auth = self._auth
        known = {**self._basic, **auth.get_auth_header()}
        answer = self._request(method, url, {**headers, **known}, data=data, stream=stream)
        if answer.status_code != HTTPStatus.UNAUTHORIZED:
            return answer
        challenge = answer.headers.get("Www-Authenticate", "")
        login = getattr(auth, "_basic_auth", None)
        if challenge.lower().startswith("basic") and login and not self._basic:
            self._basic = {"Authorization": f"Basic {login}"}
        elif challenge.lower().startswith("bearer"):
            # oras asks the realm that the registry names for a token, with the login there is
            auth.token = None
            if not auth.authenticate_request(answer, {})[1]:
                return answer
        else:
            return answer
        answer.close()
        known = {**self._basic, **auth.get_auth_header()}
        return self._request(method, url, {**headers, **known}, data=data, stream=stream)

    def _request(
        self, method: str, url: str, headers: dict[str, str], *, data: bytes | None, stream: bool
    ) -> requests.Response:
        return self._session.request(
            method, url, headers=headers, data=data, stream=stream, verify=self._verify
        )

    def _location(self, answer: requests.Response) -> str:
        place = urljoin(answer.url, answer.headers.get("Location", ""))
        if urlsplit(place)[:2] != urlsplit(self._base)[:2]:
            raise SourceError(
                f"{self.reference.host} wants uploads at {urlsplit(place).netloc[:80]!r}; only "
                "itself is given the login",
                code="bad-redirect",
            )
        return place

    def _require(self, answer: requests.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            with closing(answer):
                raise _refused(self.reference, answer)


class _BlobStream(io.RawIOBase):
    """A blob on its way: begun again where it broke off, and proven at its end."""

    def __init__(self, repository: RegistryRepository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._hasher = hashlib.sha256()
        self._offset = 0
        self._left = ATTEMPTS
        self._answer = repository.blob_from(descriptor, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer``; 0 at the end, where the digest must be right."""
        data = self._read(min(len(buffer), self._descriptor.size + 1 - self._offset))
        self._hasher.update(data)
        self._offset += len(data)
        if self._offset > self._descriptor.size or (not data and not self._proven()):
            raise MalformedBundleError(
                f"{self._repository.reference.host} sent other bytes for blob "
                f"{self._descriptor.digest} of {self._descriptor.size} bytes",
                code="wrong-digest",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of the connection."""
        self._answer.close()
        super().close()

    def _proven(self) -> bool:
        return f"sha256:{self._hasher.hexdigest()}" == self._descriptor.digest

    def _read(self, size: int) -> bytes:
        while True:
            data, broken = self._receive(size)
            if data or self._offset == self._descriptor.size:
                return data
            self._left -= 1
            if not self._left:
                raise SourceError(
                    f"{self._repository.reference.host} broke off {self._descriptor.digest} after "
                    f"{self._offset} of {self._descriptor.size} bytes",
                    code="truncated",
                ) from broken
            self._answer.close()
            self._answer = self._repository.blob_from(self._descriptor, self._offset)

    def _receive(self, size: int) -> tuple[bytes, BaseException | None]:
        import urllib3  # noqa: PLC0415

        try:
            return self._answer.raw.read(size), None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return b"", error


def _session(scheme: str) -> requests.Session:
    """A session without cookies, without a way out of ``scheme``, and without endless requests."""
    # requests opens a socket when it is imported, to see whether there is IPv6
    import requests  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    class Patient(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> requests.Response:
            options["timeout"] = options.get("timeout") or TIMEOUT_SECONDS
            return super().send(*arguments, **options)

    made = requests.Session()
    # some registries take a client that keeps cookies for a browser
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    made.mount(f"{scheme}://", Patient())
    if scheme == "https":
        made.adapters.pop("http://")
    return made


def _login(
    session: requests.Session,
    reference: Reference,
    access: Access,
    *,
    plain: bool,
    verify: bool | str,
) -> Any:
    from oras.auth import get_auth_backend  # noqa: PLC0415
    from oras.container import Container  # noqa: PLC0415

    # not oras's own Registry: it waits minutes for what is refused, and seconds for its imports
    auth = get_auth_backend("token", session, insecure=plain, tls_verify=verify)
    if access.user is not None:
        auth.set_basic_auth(access.user, access.password or "")
        return auth
    try:
        auth.load_configs(Container(f"{reference.host}/{reference.repository}"))
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"docker's configuration cannot be read: {error}; correct it, or give --username",
            code="bad-login",
        ) from error
    return auth


def _read(answer: requests.Response, limit: int, *, what: str) -> bytes:
    parts, size = [], 0
    for part in answer.iter_content(64 * 1024):
        size += len(part)
        if size > limit:
            raise MalformedBundleError(f"{what} has more than {limit} bytes", code="too-large")
        parts.append(part)
    return b"".join(parts)


def _refused(reference: Reference, answer: requests.Response) -> SourceError:
    words = ascii(next(answer.iter_content(_TOLD_BYTES), b"")[:300].decode(errors="replace"))
    host, status = reference.host, answer.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return SourceError(
            f"{host} does not let you ({status}): log in with docker login or skopeo login, or "
            "give --username and --password-stdin",
            code="unauthorized",
        )
    if status == HTTPStatus.NOT_FOUND:
        return SourceError(f"{host} has no {reference.repository}, or no such part of it",
                           code="not-found")  # fmt: skip
    return SourceError(f"{host} answered {status}: {words}", code="refused")


def _unreachable(host: str, error: Exception) -> SourceError:
    import requests  # noqa: PLC0415

    if isinstance(error, requests.exceptions.SSLError):
        return SourceError(
            f"the certificate of {host} does not hold: {_root(error)}; --ca names a private "
            "authority, --plain-http asks without TLS",
            code="bad-certificate",
        )
    if isinstance(error, requests.exceptions.InvalidSchema):
        return SourceError(f"{host} leads out of TLS: {error}", code="bad-redirect")
    return SourceError(f"{host} is not reachable: {_root(error)}", code="unreachable")


def _root(error: BaseException) -> str:
    """The words of what lies at the bottom, without the layers of libraries above."""
    seen = error
    while (below := seen.__cause__ or seen.__context__) is not None:
        seen = below
    return str(seen)[:300]
