"""``edgepack logout``: see :mod:`edgepack_cli.commands.login`."""

from __future__ import annotations

from edgepack_cli.commands.login import logout

command = logout
