"""The table from errors to statuses: every error of ours has one, and bugs tell nothing."""

from __future__ import annotations

import errno

import pytest
from fleet_http import open_fleet

from edgepack_contract.errors import (
    BundleError,
    ConfigError,
    DocumentError,
    EdgepackError,
    SigningKeyError,
    SourceError,
)
from edgepack_fleet.api.problems import status_of
from edgepack_fleet.errors import FleetError, RequestError

NOT_A_CALLERS = (SigningKeyError, SourceError)
"""Raised where keys and registries are used, which no route lets a caller choose."""
ROOTS = (EdgepackError, FleetError)


def errors():
    """Every error of contract and fleet; other packages may be loaded in this process too."""
    found, waiting = set(), [EdgepackError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith(("edgepack_contract.", "edgepack_fleet.")):
            found.add(kind)
    return sorted(found - set(ROOTS), key=lambda kind: kind.__name__)


def test_every_error_that_a_caller_can_cause_has_a_status():
    assert len(errors()) > 20
    for kind in errors():
        status = status_of(kind.__new__(kind))
        assert (status == 500) == issubclass(kind, NOT_A_CALLERS), f"{kind.__name__}: {status}"


def test_what_a_caller_sent_is_the_callers_fault():
    for kind in errors():
        if issubclass(kind, (BundleError, DocumentError, ConfigError, RequestError)):
            assert 400 <= status_of(kind.__new__(kind)) < 500, kind.__name__


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def test_a_bug_is_a_500_that_tells_nothing(fleet, monkeypatch, caplog):
    def broken(*_args, **_kwargs):
        raise RuntimeError("the secret is 1234")

    monkeypatch.setattr("edgepack_fleet.devices.list_devices", broken)
    answer = fleet.client("viewer").get("/api/v1/devices")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "1234" not in answer.text
    assert "the secret is 1234" in caplog.text


def test_a_full_disk_is_a_507(fleet, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fleet.context.bundles.__class__, "receive", full)
    answer = fleet.client("publisher").put("/api/v1/bundles", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")


def test_another_disk_error_is_a_bug(fleet, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fleet.context.bundles.__class__, "receive", broken)
    answer = fleet.client("publisher").put("/api/v1/bundles", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
