"""What a check of a device finds, and how many checks run side by side, each with an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """How bad a finding is; only ``fail`` makes a device unfit."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding; ``remedy`` says what to do about it, and is empty when it is ``ok``."""

    check: str
    verdict: Verdict
    words: str
    remedy: str = ""


Check = Callable[[], Sequence[Finding]]


def ok(check: str, words: str) -> Finding:
    """All is well."""
    return Finding(check=check, verdict=Verdict.OK, words=words)


def warn(check: str, words: str, remedy: str) -> Finding:
    """It works, but not for long, or not in every case."""
    return Finding(check=check, verdict=Verdict.WARN, words=words, remedy=remedy)


def fail(check: str, words: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check=check, verdict=Verdict.FAIL, words=words, remedy=remedy)


def run_checks(checks: Mapping[str, Check], *, seconds: float) -> list[Finding]:
    """Run checks side by side, and give their findings in the order of the checks.

    Args:
        checks: By name.
        seconds: What takes longer is left behind, and is a failure.
    """
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = list(check())
        except Exception as error:  # noqa: BLE001 - a check that cannot be made is a finding, too
            words = f"{type(error).__name__}: {error}"
            found[name] = [fail(name, words, "the check itself failed; report this")]

    # daemon threads: a host that does not answer must not keep the command from ending
    threads = {
        name: threading.Thread(target=run, args=(name, check), daemon=True)
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(seconds)
    late = fail("", f"took more than {seconds:g} s", "try again; the machine or its network hangs")
    return [
        finding
        for name in checks
        for finding in found.get(name, [msgspec.structs.replace(late, check=name)])
    ]
