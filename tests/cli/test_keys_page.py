"""docs/keys.md runs: every command of the page, in its order, by a shell, as real processes.

Each section of drills starts from keys that were made as the page says. What is pushed to a service
is checked as a device would check it; the service's part has tests of its own.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_samples import one_variant
from cryptography import x509

from edgepack_cli.main import edgepack
from edgepack_contract import keyring
from edgepack_contract.keyring import open_keyring
from edgepack_contract.keys import read_private_key
from edgepack_contract.layout import write_bundle

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "keys.md").read_text(encoding="utf-8")
PUSH = "edgepack keys keyring push keys/keyring.json"
SECRET = b"correct horse"
PRELUDE = f"""
set -eu
edgepack() {{
    case "$*" in
        "keys keyring push"*) cp "$4" pushed.json ;;
        "keys keyring status"*) ;;
        *) yes | "{sys.executable}" -m edgepack_cli "$@" ;;
    esac
}}
configure() {{
    cat service.toml - > fleet.toml
}}
"""


SERVICE = """\
data_dir = "fleet"
[keys]
fleet = "keys/fleet.key"
keyring = "keys/keyring.json"
owner = "{owner}"
"""
FORMER = 'authority = "keys/authority.key"\nauthority_certificate = "keys/authority.pem"\n'
HOSTED = """
edgepack fleet certificate --config fleet.toml --host fleet.example --out tls
edgepack fleet mqtt-config --config fleet.toml --host broker.example --out broker
"""


def blocks(text):
    """The commands, and what the page says to write into the service's configuration."""
    found = re.findall(r"^```(sh|toml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(
        body if kind == "sh" else f"configure <<'END'\n{body}END\n" for kind, body in found
    )


def sections(text, mark):
    """The commands under every heading of a level, by heading; under "" what comes before."""
    parts = re.split(rf"^{mark} (.+)$", text, flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {"": blocks(parts[0])} | {name: blocks(part) for name, part in named.items()}


CHAPTERS = dict(zip(*[iter(re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
MAKE = blocks(CHAPTERS["Make them"])
DRILLS = sections(CHAPTERS["What a thief can do, and what you do"], "###")
SEVERAL = sections(CHAPTERS["Several owners"], "###")

TOLD = ["The authority is lost, or expires", "The authority is stolen"]
"""Drills whose result has a test of its own."""


@pytest.fixture
def shell(tmp_path):
    """Runs commands in one folder, as a person whose passphrase is in a file."""
    secret = tmp_path / "passphrase"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    environment = os.environ | {"EDGEPACK_PASSPHRASE_FILE": str(secret)}

    def run(commands):
        return subprocess.run(
            ["bash", "-c", PRELUDE + commands], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    return run


def test_the_page_has_the_drills_that_its_table_names():
    anchors = {re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-") for name in DRILLS | SEVERAL}
    linked = set(re.findall(r"\]\(#([a-z-]+)\)", PAGE))
    assert len(linked) >= 8
    assert linked <= anchors


@pytest.mark.parametrize("drill", [name for name in DRILLS if DRILLS[name] and name not in TOLD])
def test_a_drill_runs_and_who_pinned_the_first_owner_accepts_its_result(drill, shell, tmp_path):
    made = shell(MAKE)
    assert made.returncode == 0, made.stderr
    pinned = (tmp_path / "keys" / "owner.fingerprint").read_text().strip()
    (tmp_path / "service.toml").write_text(SERVICE.format(owner=pinned))
    publisher = read_private_key(tmp_path / "keys" / "publisher.key", SECRET)
    write_bundle(tmp_path / "digits-1.4.0.edgepack", one_variant(), signer=publisher)
    played = shell(DRILLS[drill])
    assert played.returncode == 0, played.stderr
    if PUSH in DRILLS[drill]:
        pushed = (tmp_path / "pushed.json").read_bytes()
        assert open_keyring(pushed, owner_fingerprint=pinned, minimum_version=2)
        assert pushed == (tmp_path / "keys" / "keyring.json").read_bytes()


def issuers(folder):
    """Which authority has issued what the service and the broker show."""
    names = {
        x509.load_pem_x509_certificate(path.read_bytes()).subject: path.stem
        for path in (folder / "keys").glob("authority*.pem")
    }
    shown = ["tls/service.pem", "broker/server.pem", "broker/fleet-client.pem"]
    return [
        names[x509.load_pem_x509_certificate((folder / one).read_bytes()).issuer] for one in shown
    ]


@pytest.mark.parametrize("drill", TOLD)
def test_after_the_drill_service_and_broker_have_the_new_authority_and_no_other(
    drill, shell, tmp_path
):
    assert shell(MAKE).returncode == 0
    owner = (tmp_path / "keys" / "owner.fingerprint").read_text().strip()
    (tmp_path / "service.toml").write_text(SERVICE.format(owner=owner))
    (tmp_path / "fleet.toml").write_text(SERVICE.format(owner=owner) + FORMER)
    assert shell(HOSTED).returncode == 0
    assert issuers(tmp_path) == ["authority"] * 3
    played = shell(DRILLS[drill])
    assert played.returncode == 0, played.stderr
    assert "Nobody knows" not in played.stdout
    pushed = (tmp_path / "pushed.json").read_bytes()
    assert open_keyring(pushed, owner_fingerprint=owner, minimum_version=2)
    assert issuers(tmp_path) == ["authority-2"] * 3
    new = (tmp_path / "keys" / "authority-2.pem").read_bytes()
    assert (tmp_path / "broker" / "ca.pem").read_bytes() == new
    assert (tmp_path / "broker" / "crl.pem").read_text().count("BEGIN X509 CRL") == 2


def test_several_owners_sign_together_and_replace_one(shell, tmp_path):
    played = shell("\n".join(SEVERAL.values()))
    assert played.returncode == 0, played.stderr
    assert "is taken away" in played.stderr
    pin = (tmp_path / "keys" / "owner.fingerprint").read_text().strip()
    found = open_keyring((tmp_path / "pushed.json").read_bytes(), owner_fingerprint=pin)
    assert (found.version, found.threshold, len(found.owners)) == (3, 2, 3)


def test_commands_in_the_text_exist():
    for words in set(re.findall(r"`edgepack ([a-z -]+?)`", PAGE)):
        assert edgepack.main(
            [*words.split(), "--help"], prog_name="edgepack", standalone_mode=False
        ) in (0, None), words


def test_every_reason_to_refuse_a_keyring_or_a_bundle_by_it_is_documented():
    protocol = (DOCS / "protocol.md").read_text(encoding="utf-8")
    codes = set(re.findall(r'code="([a-z-]+)"', inspect.getsource(keyring)))
    assert len(codes) >= 10
    assert codes <= set(re.findall(r"`([a-z-]+)`", PAGE + protocol))
