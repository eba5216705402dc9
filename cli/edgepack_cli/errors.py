"""What can go wrong in the command itself, and which exit code every error gets."""

from __future__ import annotations

from enum import IntEnum

from edgepack_contract.errors import (
    BundleError,
    ConfigError,
    DocumentError,
    EdgepackError,
    MalformedBundleError,
    SigningKeyError,
    UnsupportedBundleError,
)


class Exit(IntEnum):
    """Exit codes; a script may rely on them."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_INPUT = 3
    ACCURACY = 4
    BUDGET = 5
    VERIFICATION = 6
    INCOMPATIBLE = 7
    PAUSED = 10
    ROLLED_BACK = 11
    TIMED_OUT = 12
    CONFIG = 78
    INTERRUPTED = 130


class CommandError(EdgepackError):
    """A command cannot do what it was asked to do."""

    default_code = "command"

    def __init__(
        self, message: str, *, exit_code: Exit = Exit.BAD_INPUT, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.exit_code = exit_code


class FleetUnreachableError(CommandError):
    """The fleet service does not answer."""

    default_code = "fleet-unreachable"


class FleetRefusedError(CommandError):
    """The fleet service answered with a problem; ``status`` is the HTTP status."""

    default_code = "fleet-refused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


_BY_TYPE: list[tuple[type[EdgepackError], Exit]] = [
    (UnsupportedBundleError, Exit.INCOMPATIBLE),
    (MalformedBundleError, Exit.VERIFICATION),
    (BundleError, Exit.VERIFICATION),
    (DocumentError, Exit.VERIFICATION),
    (SigningKeyError, Exit.BAD_INPUT),
    (ConfigError, Exit.CONFIG),
]
_BY_NAME = {"AccuracyGateError": Exit.ACCURACY, "BudgetError": Exit.BUDGET}
"""The packager's errors are known by name, so that a device needs no packager to run the CLI."""


def exit_code_of(error: EdgepackError) -> Exit:
    """The exit code of an error, by who is to blame."""
    if isinstance(error, CommandError):
        return error.exit_code
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_NAME:
            return _BY_NAME[kind.__name__]
    return next((code for kind, code in _BY_TYPE if isinstance(error, kind)), Exit.BAD_INPUT)
