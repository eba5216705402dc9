"""Passwords: what is kept, what is right, and how many are checked at once."""

from __future__ import annotations

import threading

import pytest
from argon2 import PasswordHasher

from edgepack_fleet.errors import OperationError
from edgepack_fleet.passwords import AT_ONCE, Passwords

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse battery"


def test_what_is_kept_is_argon2id_with_the_recommended_costs():
    kept = Passwords().hash(PASSWORD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PASSWORD not in kept


def test_only_the_right_password_is_right():
    passwords = Passwords(QUICK)
    kept = passwords.hash(PASSWORD)
    assert kept != passwords.hash(PASSWORD)
    assert passwords.is_right(kept, PASSWORD)
    for wrong in ("", PASSWORD + " ", PASSWORD.upper(), "x" * 5000, "\ud800" * 12):
        assert not passwords.is_right(kept, wrong)


def test_nobodys_password_is_checked_and_never_right():
    passwords = Passwords(QUICK)
    assert not passwords.is_right(None, PASSWORD)
    assert not passwords.is_right(None, "")
    assert not passwords.is_right("not a hash", PASSWORD)


def test_an_accent_is_the_same_however_it_is_typed():
    passwords = Passwords(QUICK)
    kept = passwords.hash("caf\u00e9 caf\u00e9 caf\u00e9")
    assert passwords.is_right(kept, "cafe\u0301 cafe\u0301 cafe\u0301")


def test_only_so_many_are_checked_at_once(monkeypatch):
    passwords = Passwords(QUICK, turn_seconds=0.01)
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow(*_):
        entered.release()
        assert leave.wait(30)
        return True

    monkeypatch.setattr(PasswordHasher, "verify", slow)
    threads = [
        threading.Thread(target=passwords.is_right, args=("kept", PASSWORD)) for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=30)
    with pytest.raises(OperationError, match="try again"):
        passwords.is_right("kept", PASSWORD)
    leave.set()
    for thread in threads:
        thread.join()
    assert passwords.is_right("kept", PASSWORD)
