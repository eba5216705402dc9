"""A keyring, and what a successor changes, in words that a person can sign for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from edgepack_cli.keys.transitions import authorities_of
from edgepack_contract.certificates import read_certificate
from edgepack_contract.keyring import Keyring, KeyStatus, Publisher

Names = Mapping[str, str]
"""What the files of a folder call the keys, by fingerprint."""


def describe(keyring: Keyring, names: Names) -> list[str]:
    """Every key and what it may do, a line each."""
    owners = keyring.owner_keys()
    lines = [_row("owner", keyring.owner_fingerprint, *_owner_words(keyring, names))]
    if len(owners) > 1:
        lines += [_row("key", key, _name(names, key)) for key in owners]
    for key, (_, publisher) in keyring.publisher_keys().items():
        lines.append(_row("publisher", key, publisher.status, _may_sign(publisher), names.get(key)))
    lines += [_row("fleet", key, names.get(key)) for key in keyring.fleet_keys()]
    for key, pem in authorities_of(keyring).items():
        lines.append(_row("authority", key, f"until {_ends(pem)}", names.get(key)))
    lines += [_row("revoked", key, "fleet key", names.get(key)) for key in keyring.revoked_fleets]
    lines += [_row("revoked", digest, "bundle") for digest in keyring.revoked_digests]
    marks = ", of a demo: loopback only" if keyring.demo else ""
    dated = f", dated {date_text(keyring.issued)}" if keyring.issued else ""
    lines.append(_row("keyring", f"version {keyring.version}, epoch {keyring.epoch}{dated}{marks}"))
    return _plain(lines)


def changes(before: Keyring, after: Keyring, names: Names) -> list[str]:
    """What is different in ``after``, a line each: nothing that differs goes without one."""
    lines = [
        f"version {before.version} becomes {after.version}, dated {date_text(after.issued)}",
        *_epoch_change(before, after),
        *_owner_changes(before, after, names),
        *_publisher_changes(before, after, names),
        *_set_changes("fleet key", before.fleet_keys(), after.fleet_keys(), names),
        *_set_changes("revoked fleet key", before.revoked_fleets, after.revoked_fleets, names),
        *_set_changes("authority", authorities_of(before), authorities_of(after), names),
        *_set_changes("revoked bundle", before.revoked_digests, after.revoked_digests, names),
        *_demo_change(before, after),
    ]
    return _plain(lines)


def date_text(moment_ms: int) -> str:
    """A date for people, UTC, from milliseconds since 1970."""
    if moment_ms >= 253_402_300_800_000:
        return "after the year 9999"
    return f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _plain(lines: list[str]) -> list[str]:
    """The lines without anything that could hide or move text on a terminal."""
    return [
        "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line) for line in lines
    ]


def _row(what: str, *words: str | None) -> str:
    return f"{what:<9}  {'  '.join(word for word in words if word)}"


def _name(names: Names, key: str) -> str:
    return names.get(key, "(no file here)")


def _owner_words(keyring: Keyring, names: Names) -> list[str | None]:
    owners = keyring.owner_keys()
    if len(owners) == 1:
        return [names.get(next(iter(owners)))]
    return [f"{keyring.threshold} of these {len(owners)} keys sign:"]


def _may_sign(publisher: Publisher) -> str:
    names = ", ".join(publisher.names)
    match publisher.status:
        case KeyStatus.ACTIVE:
            return f"signs {names}"
        case KeyStatus.RETIRED:
            return f"signed {names}: good for {len(publisher.digests)} bundles"
        case KeyStatus.REVOKED:
            return "good for nothing"


def _ends(pem: str) -> str:
    return f"{read_certificate(pem.encode()).not_valid_after_utc:%Y-%m-%d}"


def _epoch_change(before: Keyring, after: Keyring) -> list[str]:
    if before.epoch == after.epoch:
        return []
    words = "devices forget the generations, floors and dates that they were told before"
    return [f"epoch {before.epoch} becomes {after.epoch}: {words}"]


def _owner_changes(before: Keyring, after: Keyring, names: Names) -> list[str]:
    lines = _set_changes("owner key", before.owner_keys(), after.owner_keys(), names)
    if before.threshold != after.threshold:
        lines.append(
            f"{after.threshold} of {len(after.owner_keys())} owner keys must sign, no longer "
            f"{before.threshold} of {len(before.owner_keys())}"
        )
    if before.owner_fingerprint != after.owner_fingerprint:
        lines.append(f"the owner that new devices pin becomes {after.owner_fingerprint}")
    return lines


def _publisher_changes(before: Keyring, after: Keyring, names: Names) -> list[str]:
    old = {key: one for key, (_, one) in before.publisher_keys().items()}
    new = {key: one for key, (_, one) in after.publisher_keys().items()}
    lines = _set_changes("publisher key", old, new, names)
    for key, one in new.items():
        if key not in old:
            lines.append(f"  it is {one.status} and {_may_sign(one)}")
        elif one != old[key]:
            lines += _publisher_change(_called(key, names), old[key], one)
    return lines


def _publisher_change(called: str, old: Publisher, new: Publisher) -> list[str]:
    lines = []
    if old.status != new.status:
        lines.append(f"publisher key {called} is no longer {old.status}, but {new.status}")
    if old.names != new.names:
        lines.append(f"publisher key {called} may sign {', '.join(new.names) or 'nothing'}")
    lines += [f"  it stays good for {one}" for one in new.digests if one not in old.digests]
    lines += [f"  it is no longer good for {one}" for one in old.digests if one not in new.digests]
    return lines


def _set_changes(
    what: str, before: Mapping[str, object] | list[str], after: Mapping[str, object] | list[str],
    names: Names,
) -> list[str]:  # fmt: skip
    gone = [f"{what} {_called(key, names)} is taken away" for key in before if key not in after]
    new = [f"{what} {_called(key, names)} is added" for key in after if key not in before]
    return [*gone, *new]


def _demo_change(before: Keyring, after: Keyring) -> list[str]:
    if before.demo == after.demo:
        return []
    return ["it is of a demo now" if after.demo else "it is no longer of a demo"]


def _called(key: str, names: Names) -> str:
    return f"{key} ({names[key]})" if key in names else key
