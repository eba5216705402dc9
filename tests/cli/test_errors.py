"""Every error has an exit code that says who is to blame."""

from __future__ import annotations

import pytest

from edgepack_cli.errors import CommandError, Exit, FleetRefusedError, exit_code_of
from edgepack_contract import errors as contract
from edgepack_packager import errors as packager

CODES = [
    (contract.MalformedBundleError("x"), 6),
    (contract.UntrustedBundleError("x"), 6),
    (contract.UnsupportedBundleError("x"), 7),
    (contract.MalformedDocumentError("x"), 6),
    (contract.UntrustedDocumentError("x"), 6),
    (contract.SigningKeyError("x"), 3),
    (contract.SourceError("x"), 3),
    (contract.ConfigError("x"), 78),
    (contract.EdgepackError("x"), 3),
    (packager.RecipeError("x"), 3),
    (packager.DataError("x"), 3),
    (packager.ConversionError("x"), 3),
    (packager.LockError("x"), 3),
    (packager.AccuracyGateError("x"), 4),
    (packager.BudgetError("x"), 5),
    (CommandError("x"), 3),
    (CommandError("x", exit_code=Exit.USAGE), 2),
    (FleetRefusedError("x", status=404), 3),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=[type(one).__name__ for one, _ in CODES])
def test_exit_codes(error, code):
    assert exit_code_of(error) == code


def test_the_packagers_errors_are_known_by_names_that_exist():
    class NearlyError(packager.BudgetError):
        """A more exact one, of later."""

    assert exit_code_of(NearlyError("x")) == Exit.BUDGET


def test_exit_codes_are_a_format():
    assert {one.name: one.value for one in Exit} == {
        "OK": 0, "INTERNAL": 1, "USAGE": 2, "BAD_INPUT": 3, "ACCURACY": 4, "BUDGET": 5,
        "VERIFICATION": 6, "INCOMPATIBLE": 7, "PAUSED": 10, "ROLLED_BACK": 11, "TIMED_OUT": 12,
        "CONFIG": 78, "INTERRUPTED": 130,
    }  # fmt: skip
