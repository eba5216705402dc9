"""Errors of the device that are nobody's bytes: its disk, its record of itself, its fleet."""

from __future__ import annotations

from edgepack_contract.errors import EdgepackError, SourceError


class DeviceError(EdgepackError):
    """Something on this device is wrong; the bundle and the fleet are not to blame."""

    default_code = "device"


class StorageFaultError(DeviceError):
    """The disk failed to keep what was written. Nothing more is written until a restart."""

    default_code = "storage-fault"


class DiskFullError(DeviceError):
    """There is no room for what had to be written; what was there before is untouched."""

    default_code = "disk-full"


class JournalError(DeviceError):
    """The record of a slot would not fit its file, or cannot be read at all."""

    default_code = "journal"


class TransientSourceError(SourceError):
    """A source does not answer now; asking again later may help."""

    default_code = "source-unavailable"


class WaitingSourceError(TransientSourceError):
    """A source may not be asked now, by this device's own rules; waiting is no failed try."""

    default_code = "waits-unmetered"


class InterruptedInstallError(DeviceError):
    """A newer wish or the end of the daemon asked a download to stop. Not a failure."""

    default_code = "interrupted"


class LostModelError(DeviceError):
    """A model that gave way for a while cannot be loaded again; the daemon is to start anew."""

    default_code = "lost-model"


class FleetError(EdgepackError):
    """The fleet service does not do what this device needs of it."""

    default_code = "fleet"


class FleetUnavailableError(FleetError):
    """The fleet service does not answer now; asking again later may help."""

    default_code = "fleet-unavailable"


class FleetBusyError(FleetUnavailableError):
    """The fleet service is there, and has too much to do: many devices behind one address join."""

    default_code = "fleet-busy"


class FleetUntrustedError(FleetError):
    """What answers does not prove in TLS that it is the fleet service."""

    default_code = "fleet-untrusted"


class FleetRefusedError(FleetError):
    """The fleet service understood, and says no; the code is its own.

    Args:
        message: Its words.
        code: Its code.
        status: The HTTP status.
    """

    default_code = "fleet-refused"

    def __init__(self, message: str, *, code: str | None = None, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status


class StillPendingError(FleetError):
    """Nobody has approved this device yet; asking again later may help."""

    default_code = "still-pending"
