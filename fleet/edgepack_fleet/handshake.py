"""What paho takes for a TLS context: shakes hands at once, and closes the socket if that fails."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from edgepack_contract.errors import EdgepackError


class Handshake:
    """Makes a context anew for every connection.

    So a certificate that was renewed, or another authority, needs no restart.
    """

    check_hostname = True

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make

    def wrap_socket(self, plain: socket.socket, **options: Any) -> ssl.SSLSocket:
        """See :meth:`ssl.SSLContext.wrap_socket`.

        Raises:
            OSError: There can be no TLS now; any other error would end paho's thread.
        """
        options["do_handshake_on_connect"] = True
        try:
            return self._make().wrap_socket(plain, **options)
        except EdgepackError as error:
            plain.close()
            raise OSError(str(error)) from error
