"""How a device reaches its broker and its fleet service, by what it believes at that moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack_contract.instructions import Identity
from edgepack_contract.sealing import derived_secret
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.link import Broker
from edgepack_runtime.membership.identity import DeviceIdentity
from edgepack_runtime.orders import Orders
from edgepack_runtime.sources.opening import FleetHost, Sources
from edgepack_runtime.sources.source import Credentials
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import Trust

if TYPE_CHECKING:
    from edgepack_runtime.membership.renewal import Renewer


def broker(config: RuntimeConfig, trust: Trust) -> Broker:
    """The broker, over TLS when so configured; this device shows the certificate that it has."""
    mqtt, identity = config.mqtt, config.identity
    context = partial(
        trust.tls_context, mqtt.ca, certificate=identity.certificate, key=identity.key
    )
    return Broker(
        host=mqtt.host,
        port=mqtt.port,
        keepalive_seconds=mqtt.keepalive_seconds,
        tls=context if mqtt.tls else None,
        version_5=mqtt.version == "5",
    )


def renewer(
    config: RuntimeConfig,
    who: Identity,
    trust: Trust,
    orders: Orders,
    *,
    reconnect: Callable[[], None],
    fs: DurableFS,
    rng: random.Random,
) -> Renewer | None:
    """What keeps the certificate good; None without a certificate or a fleet to renew it."""
    url, certificate = config.fleet.url, config.identity.certificate
    if url is None or certificate is None:
        return None
    # with it comes what reads certificates, 3 MB
    from edgepack_runtime.membership.renewal import RenewalParts, Renewer  # noqa: PLC0415

    parts = RenewalParts(
        tls=partial(trust.tls_context, config.fleet.ca),
        take_keyring=orders.advance,
        reconnect=reconnect,
        refuse=partial(orders.refuse, "renewal"),
        settle=partial(orders.settle, "renewal"),
    )
    return Renewer(
        who,
        url,
        key=Path(config.identity.key),
        certificate=Path(certificate),
        parts=parts,
        fs=fs,
        clock=trust.clock,
        rng=rng,
    )


def bundle_sources(config: RuntimeConfig, identity: DeviceIdentity, trust: Trust) -> Sources:
    """Where this device gets bundles from, the fleet service among others."""
    secret = derived_secret(identity.mac_key, "pull")
    fleet = FleetHost(
        url=config.fleet.url,
        credentials=Credentials(identity.identity.device, secret),
        tls=partial(trust.tls_context, config.fleet.ca),
    )
    return Sources(config.download, fleet=fleet, clock=trust.clock)
