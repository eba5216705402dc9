"""The device's certificate, renewed before it ends, or as soon as the fleet can be reached after.

A renewal is signed with the device's key and needs no certificate, so that a device which was off
for longer than its certificate lived comes back by itself. Serving never waits for any of this.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from cryptography import x509

from edgepack_contract.canonical import decode
from edgepack_contract.certificates import certificate_key, read_certificate
from edgepack_contract.clock import TrustedClock
from edgepack_contract.enrolment import Renewal, RenewalAnswer, renewal_due_ms, sign_renewal
from edgepack_contract.errors import (
    EdgepackError,
    MalformedDocumentError,
    SigningKeyError,
    UntrustedDocumentError,
)
from edgepack_contract.instructions import Identity
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_runtime.errors import FleetRefusedError, FleetUntrustedError
from edgepack_runtime.membership.enrolment import KEYRING_PATH, check_certificate
from edgepack_runtime.membership.fleet_client import FleetClient, unchecked
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

RENEW_PATH = "/api/v1/enrol/renew"
SPREAD = 0.1
"""The share of what is left of a certificate's life over which a fleet spreads its renewals."""

FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 6 * 3600.0
LONGEST_PAUSE_EXPIRED_SECONDS = 3600.0
REFUSED_PAUSE_SECONDS = 86_400.0
LOOK_AGAIN_SECONDS = 3600.0
"""Clocks are set while one waits, so nobody waits for longer without looking at them."""

NEAR_END_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Life:
    """From when until when a certificate is good, milliseconds since 1970 UTC."""

    issued_ms: int
    expires_ms: int

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Life:
        """The life that a certificate states."""
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(int(begin.timestamp() * 1000), int(end.timestamp() * 1000))

    def due_ms(self, spread: float) -> int:
        """When to renew it; ``spread``, 0 to 1, is this device's place among all of the fleet."""
        due = renewal_due_ms(self.issued_ms, self.expires_ms)
        return due + int((self.expires_ms - due) * SPREAD * spread)


@dataclass(frozen=True, slots=True)
class Attempts:
    """What became of the attempts of this run: the last succeeded, or so many failed since."""

    failures: int = 0
    refused: bool = False
    succeeded: bool = False


def pause_seconds(
    life: Life | None, attempts: Attempts, *, now_ms: int, spread: float, rng: random.Random
) -> float:
    """How long to wait before the certificate is looked at, or tried to be renewed, again.

    Args:
        life: Of the certificate that there is; None when there is none that can be used.
        attempts: What became of those before.
        now_ms: The trusted time, milliseconds since 1970 UTC.
        spread: See :meth:`Life.due_ms`.
        rng: Spreads devices whose fleet comes back.
    """
    if attempts.refused:
        return REFUSED_PAUSE_SECONDS * rng.uniform(0.9, 1.1)
    if attempts.failures:
        ended = life is None or life.expires_ms <= now_ms
        most = LONGEST_PAUSE_EXPIRED_SECONDS if ended else LONGEST_PAUSE_SECONDS
        grown = FIRST_PAUSE_SECONDS * 2.0 ** min(attempts.failures - 1, 32)
        return min(grown, most) * rng.uniform(0.5, 1.5)
    if life is None:
        return 0.0
    due = life.due_ms(spread)
    if due <= now_ms and attempts.succeeded:
        # the clock is ahead, or the certificate short: the next would not help much longer either
        left = (life.expires_ms - now_ms) / 1000
        return max(FIRST_PAUSE_SECONDS, min(left / 10, REFUSED_PAUSE_SECONDS))
    return min(max((due - now_ms) / 1000, 0.0), LOOK_AGAIN_SECONDS)


@dataclass(frozen=True, slots=True)
class RenewalParts:
    """What a renewal needs of the daemon. All are called in its loop.

    Attributes:
        tls: How to believe the fleet service by what is in force at that moment.
        take_keyring: Takes a keyring file that may be newer; whether one is in force by it.
        reconnect: Lets the link connect anew, with the certificate of the file.
        refuse: Tells, by code and words, that the fleet refuses this device.
        settle: Tells that it does not any more.
    """

    tls: Callable[[], ssl.SSLContext]
    take_keyring: Callable[[bytes], Awaitable[bool]]
    reconnect: Callable[[], None]
    refuse: Callable[[str, str], None]
    settle: Callable[[], None]


class Renewer:
    """Keeps one certificate good.

    Args:
        who: This device.
        url: The fleet service.
        key: The device's key.
        certificate: The file to keep good.
        parts: The rest of the daemon.
        fs: Writes the file.
        clock: The trusted time.
        rng: Spreads what many devices would do at once.
    """

    def __init__(
        self,
        who: Identity,
        url: str,
        *,
        key: Path,
        certificate: Path,
        parts: RenewalParts,
        fs: DurableFS,
        clock: TrustedClock,
        rng: random.Random,
    ) -> None:
        self._who, self._url = who, url
        self._key, self._certificate = key, certificate
        self._parts, self._fs, self._clock, self._rng = parts, fs, clock, rng
        self._spread = rng.random()
        self._attempts = Attempts()
        self._asked = asyncio.Event()
        self._last_try: float | None = None

    async def run(self) -> None:
        """Renew whenever it is due, for as long as the daemon runs."""
        while True:
            try:
                await asyncio.wait_for(self._asked.wait(), self._pause())
            except TimeoutError:
                if not self._is_due():
                    continue
            self._asked.clear()
            await self._try()

    def ask(self) -> None:
        """Renew soon: the broker refuses this device, and a wrong clock can hide why.

        At most once an hour, since a broker can also refuse for reasons that renewing cannot mend.
        """
        now = asyncio.get_running_loop().time()
        if self._last_try is None or now - self._last_try >= LOOK_AGAIN_SECONDS:
            self._asked.set()

    def _pause(self) -> float:
        return pause_seconds(
            self._life(),
            self._attempts,
            now_ms=self._clock.now_ms(),
            spread=self._spread,
            rng=self._rng,
        )

    def _is_due(self) -> bool:
        life = self._life()
        return life is None or life.due_ms(self._spread) <= self._clock.now_ms()

    async def _try(self) -> None:
        self._last_try = asyncio.get_running_loop().time()
        try:
            await self._renew()
        except (EdgepackError, OSError) as error:
            self._failed(error)
        except Exception:
            # the outermost boundary of this task: a defect here must not end serving
            logger.exception("renewal failed", extra={"event": "renewal_failed"})
            self._attempts = Attempts(self._attempts.failures + 1)

    async def _renew(self) -> None:
        urgent = self._is_near_end()
        answer = await self._asked_fleet()
        expires = self._keep(answer, self._life())
        self._attempts = Attempts(succeeded=True)
        logger.info("certificate renewed until %s", expires, extra={"event": "renewed"})
        await self._parts.take_keyring(answer.keyring.encode())
        self._parts.settle()
        if urgent:
            self._parts.reconnect()

    def _is_near_end(self) -> bool:
        life = self._life()
        asked = not self._is_due()
        return life is None or asked or life.expires_ms - self._clock.now_ms() < NEAR_END_MS

    async def _asked_fleet(self) -> RenewalAnswer:
        """The fleet's answer; a fleet with a new authority proves itself by a newer keyring."""
        key = read_private_key(self._key)
        try:
            return await self._post(key)
        except FleetUntrustedError:
            client = FleetClient(self._url, tls=unchecked())
            raw = await _in_thread(
                client, lambda: client.get(KEYRING_PATH, max_bytes=LIMITS.keyring_bytes)
            )
            if not await self._parts.take_keyring(raw):
                raise
        return await self._post(key)

    async def _post(self, key: PrivateKey) -> RenewalAnswer:
        client = FleetClient(self._url, tls=self._parts.tls())
        nonce = secrets.token_hex(16)
        wish = Renewal(
            tenant=self._who.tenant,
            device=self._who.device,
            enrolment=self._who.enrolment,
            nonce=nonce,
        )
        body, most = sign_renewal(wish, key), LIMITS.enrol_answer_bytes
        raw = await _in_thread(client, lambda: client.post(RENEW_PATH, body, max_bytes=most))
        answer = decode(raw, RenewalAnswer, what="the fleet's answer", max_bytes=most)
        if not hmac.compare_digest(answer.nonce.encode(), nonce.encode()):
            raise UntrustedDocumentError(
                "the fleet's answer is to another renewal; somebody may replay it",
                code="wrong-nonce",
            )
        return answer

    def _keep(self, answer: RenewalAnswer, before: Life | None) -> str:
        """Write the new certificate; returns its end in words."""
        key = read_private_key(self._key).public
        certificate = check_certificate(
            answer.certificate, key=key, device=self._who.device, now_ms=self._clock.now_ms()
        )
        if before is not None and Life.of(certificate).expires_ms < before.expires_ms:
            raise MalformedDocumentError(
                "the fleet's new certificate ends before the one that is there",
                code="stale-certificate",
            )
        self._fs.atomic_write(self._certificate, answer.certificate.encode())
        return f"{certificate.not_valid_after_utc:%Y-%m-%d}"

    def _failed(self, error: Exception) -> None:
        failures = self._attempts.failures + 1
        if isinstance(error, FleetRefusedError) and error.status == HTTPStatus.FORBIDDEN:
            self._attempts = Attempts(failures, refused=True)
            logger.warning(
                "the fleet does not renew this device's certificate: %s; what is running goes on, "
                "and the fleet is asked again in a day",
                error, extra={"event": "renewal_refused", "code": error.code},
            )  # fmt: skip
            self._parts.refuse(error.code, str(error))
            return
        self._attempts = Attempts(failures)
        logger.warning(
            "certificate not renewed: %s", error,
            extra={"event": "renewal_failed", "code": getattr(error, "code", "disk")},
        )  # fmt: skip

    def _life(self) -> Life | None:
        """Of the certificate that there is; None when it cannot be used."""
        try:
            certificate = read_certificate(read_small(self._certificate, LIMITS.key_file_bytes))
            ours = certificate_key(certificate).fingerprint == self._who.enrolment
        except (OSError, SigningKeyError):
            return None
        return Life.of(certificate) if ours else None


async def _in_thread(client: FleetClient, work: Callable[[], bytes]) -> bytes:
    try:
        return await asyncio.to_thread(work)
    except asyncio.CancelledError:
        # the thread would else keep the daemon from ending
        client.cancel()
        raise
