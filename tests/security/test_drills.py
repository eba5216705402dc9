"""Key compromise, played through: what the thief does, what the owner does, what a device does.

The attack that The Update Framework calls key compromise, once for each kind of key. A device here
is what the contract decides for it: the keyring it has, what it obeyed, and its clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from bundle_samples import fixed_key
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edgepack_cli.keys import transitions as to
from edgepack_contract.certificates import Authority, read_authority, read_certificate
from edgepack_contract.clock import BUILT_MS, TrustedClock
from edgepack_contract.errors import (
    DocumentError,
    SigningKeyError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.instructions import (
    Identity,
    Obeyed,
    accept_desired,
    sign_desired,
    slots_digest,
)
from edgepack_contract.keyring import (
    Keyring,
    Publisher,
    advance_keyring,
    make_keyring,
    open_keyring,
    owner_fingerprint,
    sign_keyring,
    succeed_keyring,
)
from edgepack_contract.messages import Desired, Ref, SlotDesired

HOUR = 3_600_000
DAY = 24 * HOUR
NOW = BUILT_MS + 30 * DAY
Y2090 = 3_786_912_000_000
OWNERS = [fixed_key(number) for number in range(10, 14)]
PUBLISHER, PUBLISHER_2, FLEET, FLEET_2 = (fixed_key(number) for number in range(30, 34))
AUTHORITY_KEY, AUTHORITY_KEY_2, EVIL_KEY = fixed_key(40), fixed_key(41), fixed_key(66)
GOOD, EVIL = "sha256:" + "1" * 64, "sha256:" + "e" * 64


def make_authority(key, *, now_ms=NOW):
    return Authority.create(key, name=key.public.fingerprint[:16], now_ms=now_ms)


@dataclass
class Owner:
    """The owner's folder: the keyring file, and who signs."""

    keys: list = field(default_factory=lambda: OWNERS[:1])
    threshold: int = 1
    now: int = NOW

    def __post_init__(self):
        self.file = make_keyring(
            *self.keys, version=1, epoch=1, threshold=self.threshold, issued=NOW,
            publishers=[Publisher(key=PUBLISHER.public.pem.decode(), names=["digits"])],
            fleets=[FLEET.public], authorities=[make_authority(AUTHORITY_KEY).pem.decode()],
        )  # fmt: skip
        self.keyring = open_keyring(self.file, owner_fingerprint=self.pin)

    @property
    def pin(self):
        return owner_fingerprint([key.public for key in self.keys], self.threshold)

    def change(self, *steps, signers=None, new_epoch=False) -> Keyring:
        after = self.keyring
        for step in steps:
            after = step(after)
        if new_epoch:
            after = to.new_epoch(after)
        after = to.follow(self.keyring, after, now_ms=self.now)
        line = sign_keyring(after, signers or self.keys)
        self.keyring = advance_keyring(self.keyring, line)
        self.file = succeed_keyring(self.file, line)
        return self.keyring


@dataclass
class Device:
    """What one device believes."""

    keyring: Keyring
    system_ms: int = NOW
    obeyed: Obeyed = field(default_factory=Obeyed)

    def __post_init__(self):
        self.clock = TrustedClock(lambda: self.system_ms, owner_ms=self.keyring.issued)

    def hears(self, file: bytes) -> None:
        """A keyring file arrives."""
        newer = advance_keyring(self.keyring, file)
        if newer.epoch > self.keyring.epoch:
            self.clock.forget(newer.issued)
        self.keyring = newer
        self.clock.learn_of_owner(newer.issued)

    def told(self, raw: bytes) -> Desired:
        """A desired document arrives."""
        desired = accept_desired(
            raw, keyring=self.keyring, identity=Identity("default", "pi-1", "e" * 64),
            obeyed=self.obeyed, now_ms=self.clock.now_ms(), clock_is_behind=self.clock.is_behind,
        )  # fmt: skip
        self.obeyed = Obeyed(
            desired.epoch, desired.generation, slots_digest(desired), desired.issued
        )
        self.clock.learn(desired.issued)
        return desired

    def trusts(self, digest: str, signer) -> bool:
        """Whether it would install a bundle."""
        self.keyring.publisher_for(
            name="digits", digest=digest, fingerprint=signer.public.fingerprint
        )
        return True

    def connects(self, certificate: bytes) -> bool:
        """Whether TLS with the fleet's host succeeds."""
        store = Store([read_authority(pem.encode()) for pem in self.keyring.authorities])
        moment = datetime.fromtimestamp(self.clock.sure_ms() / 1000, UTC)
        policy = PolicyBuilder().store(store).time(moment)
        try:
            policy.build_server_verifier(x509.DNSName("fleet")).verify(
                read_certificate(certificate), []
            )
        except VerificationError:
            return False
        return True


def desired(key, *, generation, epoch=1, issued=NOW, digest=GOOD):
    ref = Ref(name="digits", digest=digest, sources=["https://fleet/digits"])
    return sign_desired(
        Desired(
            tenant="default", device="pi-1", enrolment="e" * 64, epoch=epoch, issued=issued,
            generation=generation, expires=issued + DAY, slots={"digits": SlotDesired(active=ref)},
        ),
        key,
    )  # fmt: skip


def refused(code, call, *arguments):
    with pytest.raises((DocumentError, UntrustedBundleError)) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_a_stolen_fleet_key_in_a_device_whose_clock_is_right():
    owner = Owner()
    device = Device(owner.keyring)
    device.told(desired(FLEET, generation=5))
    # The thief outbids every generation that the service will ever reach.
    device.told(desired(FLEET, generation=10**9))
    refused("old-generation", device.told, desired(FLEET, generation=6))
    # Without a new epoch another fleet key alone would not be listened to.
    alone = replace(device)
    alone.obeyed = device.obeyed
    file = Owner()
    file.change(lambda one: to.add_fleet(one, FLEET_2.public))
    alone.hears(file.file)
    refused("old-generation", alone.told, desired(FLEET_2, generation=6))
    # The way out.
    owner.change(lambda one: to.add_fleet(one, FLEET_2.public))
    owner.change(lambda one: to.revoke_fleet(one, FLEET.public.fingerprint), new_epoch=True)
    device.hears(owner.file)
    for epoch in (1, 2):
        refused("revoked-key", device.told, desired(FLEET, generation=10**9 + 1, epoch=epoch))
    refused("wrong-epoch", device.told, desired(FLEET_2, generation=10**9 + 1, epoch=1))
    assert device.told(desired(FLEET_2, generation=1, epoch=2)).generation == 1


def test_a_stolen_fleet_key_in_a_device_whose_clock_began_in_1970():
    owner = Owner()
    device = Device(owner.keyring, system_ms=0)
    # With its clock at 1970 nothing can be dated in the future: the date of 2090 is learnt.
    device.told(desired(FLEET, generation=10**9, issued=Y2090))
    device.system_ms = NOW
    assert device.clock.now_ms() == Y2090
    # He cannot keep it from the service, and so from the new keyring, by that date.
    server = make_authority(AUTHORITY_KEY).issue_server(FLEET.public, hosts=["fleet"], now_ms=NOW)
    assert device.connects(server.pem)
    refused("old-generation", device.told, desired(FLEET, generation=6))
    owner.change(lambda one: to.add_fleet(one, FLEET_2.public))
    owner.change(lambda one: to.revoke_fleet(one, FLEET.public.fingerprint), new_epoch=True)
    device.hears(owner.file)
    assert device.clock.now_ms() == NOW
    refused("revoked-key", device.told, desired(FLEET, generation=10**9, epoch=2, issued=Y2090))
    assert device.told(desired(FLEET_2, generation=1, epoch=2)).generation == 1


def test_a_right_clock_refuses_the_thiefs_date_at_once():
    device = Device(Owner().keyring)
    refused("future-dated", device.told, desired(FLEET, generation=2, issued=Y2090))
    assert device.clock.floor_ms == NOW


def test_a_thief_cannot_keep_the_old_keyring_in_force_where_the_new_one_is():
    owner = Owner()
    device, old = Device(owner.keyring), owner.file
    owner.change(lambda one: to.add_fleet(one, FLEET_2.public))
    owner.change(lambda one: to.revoke_fleet(one, FLEET.public.fingerprint), new_epoch=True)
    device.hears(owner.file)
    refused("old-keyring", device.hears, old)
    with pytest.raises(DocumentError) as caught:
        open_keyring(old, owner_fingerprint=owner.pin, minimum_version=device.keyring.version)
    assert caught.value.code == "old-keyring"


def test_a_stolen_publisher_key():
    owner = Owner()
    device = Device(owner.keyring)
    assert device.trusts(GOOD, PUBLISHER)
    assert device.trusts(EVIL, PUBLISHER)  # the thief's, which looks genuine
    fingerprint = PUBLISHER.public.fingerprint
    owner.change(
        lambda one: to.retire_publisher(one, fingerprint, [GOOD]),
        lambda one: to.add_publisher(one, PUBLISHER_2.public, ["digits"]),
    )
    device.hears(owner.file)
    assert device.trusts(GOOD, PUBLISHER)
    refused("retired-publisher", device.trusts, EVIL, PUBLISHER)
    owner.change(lambda one: to.revoke_publisher(one, fingerprint))
    device.hears(owner.file)
    for digest in (GOOD, EVIL):
        refused("revoked-publisher", device.trusts, digest, PUBLISHER)
    assert device.trusts(GOOD, PUBLISHER_2)  # signed again
    owner.change(lambda one: to.revoke_digest(one, EVIL))
    device.hears(owner.file)
    refused("revoked-digest", device.trusts, EVIL, PUBLISHER_2)


def replace_owner(gone, new):
    return lambda one: to.change_owners(one, add=[new.public], remove={gone.public.fingerprint})


def test_one_stolen_owner_of_two_of_three():
    owner = Owner(keys=OWNERS[:3], threshold=2)
    device, (anna, ben, thief), new = Device(owner.keyring), OWNERS[:3], OWNERS[3]
    take_over = to.follow(
        owner.keyring,
        to.change_owners(owner.keyring, remove={anna.public.fingerprint}),
        now_ms=NOW,
    )
    # Alone the thief can sign nothing that counts, however often.
    for signers in ([thief], [thief, thief], [thief, new]):
        refused("bad-signature", device.hears, sign_keyring(take_over, signers))
    pinned = owner.pin
    owner.change(replace_owner(thief, new), signers=[anna, ben])
    device.hears(owner.file)
    # From now on not even with the help of one of the others.
    again = to.follow(owner.keyring, to.new_epoch(owner.keyring), now_ms=NOW)
    refused("bad-signature", device.hears, sign_keyring(again, [thief, anna]))
    device.hears(sign_keyring(again, [new, anna]))
    # Who pinned the owners before still gets to the new keyring.
    assert open_keyring(owner.file, owner_fingerprint=pinned) == owner.keyring


def test_one_lost_owner_of_two_of_three():
    owner = Owner(keys=OWNERS[:3], threshold=2)
    device, (anna, ben, lost), new = Device(owner.keyring), OWNERS[:3], OWNERS[3]
    owner.change(replace_owner(lost, new), signers=[anna, ben])
    device.hears(owner.file)
    assert len(device.keyring.owner_keys()) == 3
    # Two of three are there again, also when another one is lost.
    owner.keys = [ben, new, anna]
    owner.change(to.new_epoch, signers=[ben, new])
    device.hears(owner.file)
    assert device.keyring.epoch == 2


def test_a_stolen_single_owner_who_comes_first_decides():
    """The one theft that is a race: devices keep to the successor that they saw first."""
    owner = Owner()
    first, second, thief = Device(owner.keyring), Device(owner.keyring), OWNERS[3]
    stolen = owner.keys[0]
    hers = to.follow(
        owner.keyring,
        to.change_owners(owner.keyring, add=[thief.public], remove={stolen.public.fingerprint}),
        now_ms=NOW,
    )
    forged = sign_keyring(hers, [stolen, thief])
    owner.change(replace_owner(stolen, OWNERS[1]), signers=[stolen, OWNERS[1]])
    first.hears(owner.file)
    refused("unknown-key", first.hears, forged)
    second.hears(forged)
    refused("unknown-key", second.hears, owner.file)


def test_an_expired_authority():
    owner = Owner()
    device = Device(owner.keyring)
    authority = make_authority(AUTHORITY_KEY)
    server = authority.issue_server(FLEET.public, hosts=["fleet"], now_ms=NOW).pem
    assert device.connects(server)
    end = int(authority.certificate.not_valid_after_utc.timestamp() * 1000)
    last = authority.issue_server(FLEET.public, hosts=["fleet"], now_ms=end - DAY).pem
    owner.now = device.system_ms = end + DAY
    assert not device.connects(last)
    with pytest.raises(SigningKeyError) as caught:
        authority.issue_server(FLEET.public, hosts=["fleet"], now_ms=owner.now)
    assert caught.value.code == "authority-expired"
    # The keyring says by itself who signed it, so it may come over a connection that nobody vouches
    # for; it brings the new authority.
    newer = make_authority(AUTHORITY_KEY_2, now_ms=owner.now)
    owner.change(lambda one: to.add_authority(one, newer.pem.decode()))
    device.hears(owner.file)
    fresh = newer.issue_server(FLEET.public, hosts=["fleet"], now_ms=owner.now).pem
    assert device.connects(fresh)
    assert not device.connects(last)
    owner.change(lambda one: to.revoke_authority(one, AUTHORITY_KEY.public.fingerprint))
    device.hears(owner.file)
    assert device.connects(fresh)


def test_a_stolen_authority():
    owner = Owner()
    device = Device(owner.keyring)
    posed = make_authority(AUTHORITY_KEY).issue_server(EVIL_KEY.public, hosts=["fleet"], now_ms=NOW)
    assert device.connects(posed.pem)
    # Even so the thief cannot say what to run.
    with pytest.raises(UntrustedDocumentError) as caught:
        device.told(desired(EVIL_KEY, generation=2))
    assert caught.value.code == "unknown-key"
    newer = make_authority(AUTHORITY_KEY_2)
    owner.change(lambda one: to.add_authority(one, newer.pem.decode()))
    owner.change(lambda one: to.revoke_authority(one, AUTHORITY_KEY.public.fingerprint))
    device.hears(owner.file)
    assert not device.connects(posed.pem)
    assert device.connects(newer.issue_server(FLEET.public, hosts=["fleet"], now_ms=NOW).pem)
