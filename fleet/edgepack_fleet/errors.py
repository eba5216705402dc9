"""What can go wrong in the fleet service, by who is to blame; HTTP statuses are not its matter."""

from __future__ import annotations

from edgepack_contract.errors import EdgepackError


class FleetError(EdgepackError):
    """The root of the errors of the fleet service."""

    default_code = "fleet"


class RequestError(FleetError):
    """Somebody asked for something that cannot be done."""

    default_code = "bad-request"


class NotFoundError(RequestError):
    """No such device, group, bundle, rollout or token."""

    default_code = "not-found"


class ConflictError(RequestError):
    """It exists already, differs from what the caller saw, or is in the way of something else."""

    default_code = "conflict"


class InvalidRequestError(RequestError):
    """A value of the request is malformed or out of range."""

    default_code = "invalid"


class NotAdmittedError(RequestError):
    """A device that may not join, or not stay: its token, its key or its standing says no."""

    default_code = "not-admitted"


class IncompatibleError(RequestError):
    """No device of the group can run the bundle."""

    default_code = "incompatible"


class OperationError(FleetError):
    """The service itself cannot go on with what it was doing."""

    default_code = "operation"


class StorageError(OperationError):
    """The database cannot be opened, is in use by another service, or is newer than this one."""

    default_code = "storage"


class LeaseLostError(OperationError):
    """Another replica drives the rollouts now; this transaction must not be committed."""

    default_code = "lease-lost"


class AuthorityError(OperationError):
    """The fleet's certificate authority cannot be used."""

    default_code = "authority"


class BrokerError(OperationError):
    """The MQTT broker refused the connection, or its address or settings are of no use."""

    default_code = "broker"
