"""Requests that offer another protocol (``Upgrade: h2c``) are answered in HTTP/1.1.

RFC 9110 section 7.8 lets a server ignore the offer, and clients count on that: Java's makes it with
every first request. httptools does not: it takes no body of such a request, and stops. So it is
parsed again without the offer, as the last one of its connection.

Of uvicorn and httptools this takes that ``_unsupported_upgrade_warning`` is called while the
``HttpParserUpgrade`` with the place of the rest is handled; ``tests/runtime/serving/
test_upgrades.py`` fails where a release changes that.
"""

from __future__ import annotations

import sys

import httptools

from edgepack_runtime.serving.repeats import Repeats

_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class PlainAnswers(Repeats):
    """The protocol of a listener: :class:`Repeats`, which changes to no other protocol."""

    _plain: bytes | None = None

    def on_headers_complete(self) -> None:
        """Leave out the offer, if there is one."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._plain = self._without_offer()
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the same request without the offer."""
        if self._plain is None:
            super().on_message_complete()

    def _without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER]
        return b"\r\n".join([*lines, b"connection: close", b"", b""])

    def _unsupported_upgrade_warning(self) -> None:
        plain, self._plain = self._plain, None
        reason = sys.exception()
        if plain is None or reason is None:
            return
        rest = self._received[reason.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(plain + rest)
