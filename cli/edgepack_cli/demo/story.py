"""The demo's story: three rollouts to five devices, the last of which goes wrong and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from edgepack_cli.demo.data import Digits, Release, load_digits_halves, make_releases
from edgepack_cli.demo.kills import Killer
from edgepack_cli.demo.listener import Listener
from edgepack_cli.demo.summary import (
    CrossCheck,
    Phase,
    Served,
    accuracy_by_phase,
    count_outcomes,
    cross_check,
    stage_times,
    traffic_text,
)
from edgepack_cli.demo.world import (
    GROUP,
    MODEL,
    PROBATION_SECONDS,
    REQUESTS_PER_SECOND,
    SOAK_SECONDS,
    WINDOW_SECONDS,
    DemoFailedError,
    World,
    command,
)
from edgepack_cli.rollout_view import render_rollout

POLL_SECONDS = 0.25
ROLLOUT_SECONDS = 180.0
SETTLE_SECONDS = 15.0
BASELINE = 620
"""Answers of one version on every device before the next is rolled out. The gate on errors compares
with 500 requests of the previous bundle, and those can grow no more once the new one answers; the
rest is what a killed daemon may take with it."""
LOST_PER_KILL = int(2 * WINDOW_SECONDS * REQUESTS_PER_SECOND)
"""A killed daemon loses its open window, which a busy machine may close late."""

ENDED = frozenset(
    {
        "completed",
        "completed_with_failures",
        "aborted",
        "rolled_back",
        "rollback_incomplete",
        "paused",
    }
)


@dataclass(slots=True)
class Story:
    """Tells the story with the world's processes; ``say`` prints a line."""

    world: World
    say: Callable[[str], None]
    control: bool
    seed: int
    killer: Killer = field(default_factory=Killer)
    phases: list[Phase] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def tell(self) -> list[str]:
        """Run everything; what did not come true, in words: empty when all did."""
        digits, releases = self._prepare()
        listener = Listener(self.world.mqtt_port)
        try:
            self._roll_out(releases[0], ["100%"], digits)
            for release in releases[1:]:
                self._wait(self._has_baseline, "enough answers of the version before")
                self._roll_out(release, ["1", "50%", "100%"], None)
            self._phase("after", self._watch_after)
            return self._summary(listener)
        finally:
            listener.stop()

    def _prepare(self) -> tuple[Digits, list[Release]]:
        self._tell("starting an MQTT broker, the fleet service and five devices")
        self.world.make_keys()
        with ThreadPoolExecutor(1) as background:
            services = background.submit(self.world.start_services)
            digits = load_digits_halves(self.seed)
            self._tell(
                f"training on {len(digits.train_rows)} of scikit-learn's digits; the other "
                f"{len(digits.device_rows)} are what the devices will see"
            )
            folder = self.world.folder
            releases = make_releases(digits, folder, control=self.control, seed=self.seed)
            services.result()
        self.world.start_devices()
        self._tell(f"the page is at {self.world.address}/#token={self.world.api.token}")
        for release in releases:
            self._tell(f"edgepack build {MODEL} {release.version} ({release.words})")
            self.say(self.world.build(release).rstrip())
            command("bundle", "push", str(self.world.bundle_path(release.version)))
        return digits, releases

    def _roll_out(self, release: Release, stages: list[str], digits: Digits | None) -> None:
        self._tell(f"edgepack rollout start {MODEL}:{release.version} --to {GROUP}")
        body = {
            "bundle": MODEL,
            "version": release.version,
            "group": GROUP,
            "options": {
                "stages": stages,
                "soak_seconds": SOAK_SECONDS,
                "probation_seconds": PROBATION_SECONDS,
                "max_wait_seconds": 60.0,
            },
        }
        rollout = self.world.api.post("/rollouts", body)
        self._phase(f"rollout of {release.version}", lambda: self._follow(rollout["id"], digits))
        self.say(render_rollout(self.rollouts[-1]))
        self.say(str(self.world.api.get(f"/rollouts/{rollout['id']}/why")["why"]))

    def _has_baseline(self) -> bool:
        return all(client.served_alike() >= BASELINE for client in self.world.clients)

    def _follow(self, rollout: str, digits: Digits | None) -> None:
        waiting = list(self.world.device_names) if digits is not None else []
        deadline = time.monotonic() + ROLLOUT_SECONDS
        shown: list[str] = []
        while time.monotonic() < deadline:
            for device in [name for name in waiting if self.world.serves(name)]:
                waiting.remove(device)
                if digits is not None:
                    self.world.start_client(device, digits)
            document = self.killer.ask(lambda: self.world.api.get(f"/rollouts/{rollout}"))
            if document is not None:
                self._progress(document, shown)
                self.killer.look(document, self.world)
                if document["state"] in ENDED and not waiting:
                    self.rollouts.append(document)
                    return
            time.sleep(POLL_SECONDS)
        raise DemoFailedError(f"rollout {rollout} has not ended after {ROLLOUT_SECONDS:.0f} s")

    def _progress(self, document: Mapping[str, Any], shown: list[str]) -> None:
        lines = [
            f"  stage {stage['index'] + 1} ({stage['target']}): {stage['state']}"
            for stage in document["stages"]
            if stage["state"] != "waiting"
        ]
        if document["state"] not in {"running", "scheduled", "draft"}:
            lines.append(f"  rollout: {document['state']}")
        for line in lines:
            if line not in shown:
                shown.append(line)
                self._tell(line)

    def _watch_after(self) -> None:
        answered = [len(client.answers) for client in self.world.clients]
        self._wait(
            lambda: all(
                len(client.answers) >= before + 80
                for client, before in zip(self.world.clients, answered, strict=True)
            ),
            "clients to be served after the last rollout",
        )

    def _summary(self, listener: Listener) -> list[str]:
        for client in self.world.clients:
            client.stop()
        served = count_outcomes(self.world.clients, self.world.devices)
        checked = self._settled_cross_check()
        self.say("")
        self.say(accuracy_by_phase(self.world.clients, self.phases))
        self.say("")
        self.say(stage_times(self.rollouts))
        self.say("")
        self.say(
            f"requests: {served.served} served, {served.failed} failed, "
            f"{served.refused} refused while a killed daemon was down"
        )
        self.say(f"answers by version, clients:   {_counts(checked.clients)}")
        self.say(f"answers by version, telemetry: {_counts(checked.telemetry)}")
        self.say(traffic_text(listener.totals()))
        self.say(f"page: {self.world.address}/#token={self.world.api.token}")
        return self._untrue(served, checked)

    def _settled_cross_check(self) -> CrossCheck:
        bundles = self.world.api.items("/bundles")
        versions = {one["digest"]: one["version"] for one in bundles}

        def compare() -> CrossCheck:
            stats = self.world.api.items("/stats")
            return cross_check(self.world.clients, stats, versions)

        deadline = time.monotonic() + SETTLE_SECONDS
        while not (checked := compare()).equal and time.monotonic() < deadline:
            if self._agree(checked):
                # A killed daemon loses its open window; whether more is still on its way shows
                # when the totals stand still.
                before = checked
                time.sleep(3.0)
                if compare() == before:
                    return before
            time.sleep(POLL_SECONDS)
        return checked

    def _untrue(self, served: Served, checked: CrossCheck) -> list[str]:
        last = "completed" if self.control else "rolled_back"
        wrong = [
            f"rollout of {rollout['version']} is {rollout['state']}, expected {expected}: "
            f"{rollout['reason']}"
            for rollout, expected in zip(
                self.rollouts, ["completed", "completed", last], strict=True
            )
            if rollout["state"] != expected
        ]
        wrong += self._wrong_versions("1.2.0" if self.control else "1.1.0")
        if served.failed:
            wrong.append(f"{served.failed} requests failed: {'; '.join(served.failures)}")
        if not self._agree(checked):
            wrong.append(f"telemetry says {checked.telemetry}, the clients {checked.clients}")
        return wrong + self.killer.not_done()

    def _agree(self, checked: CrossCheck) -> bool:
        return checked.agrees(lost=self.killer.killed_devices * LOST_PER_KILL)

    def _wrong_versions(self, version: str) -> list[str]:
        wrong = []
        for device in self.world.api.items("/devices"):
            slot = (device["slots"] or {}).get(MODEL)
            running = slot["version"] if slot else None
            if running != version:
                wrong.append(f"{device['id']} runs {running}, expected {version}")
        return wrong

    def _phase(self, name: str, act: Callable[[], None]) -> None:
        start = time.monotonic()
        act()
        self.phases.append(Phase(name, start, time.monotonic()))

    def _wait(self, come_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not come_true():
            if time.monotonic() > deadline:
                raise DemoFailedError(f"waited {SETTLE_SECONDS:.0f} s in vain for {what}")
            time.sleep(POLL_SECONDS)

    def _tell(self, words: str) -> None:
        self.say(f"[{time.monotonic() - self.started:5.1f} s] {words}")


def _counts(by_version: Mapping[str, int]) -> str:
    return ", ".join(f"{version} {count}" for version, count in by_version.items())
