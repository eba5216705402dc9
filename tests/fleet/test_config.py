"""The configuration: strict, complete, and safe by default."""

from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_fleet.config import environment_names, load_config
from edgepack_fleet.security import leaving

OWNER = "ab" * 32
GOOD = f"""
data_dir = "data"
[keys]
fleet = "keys/fleet.key"
keyring = "/etc/keyring.json"
owner = "{OWNER}"
"""


def load(folder, text=GOOD, **environment):
    path = folder / "fleet.toml"
    path.write_text(text)
    return load_config(path, environment)


def test_defaults_are_safe_and_paths_are_relative_to_the_file(tmp_path):
    config = load(tmp_path)
    assert leaving(config) == []
    assert config.data_path == tmp_path / "data"
    assert config.database_url == f"sqlite:///{tmp_path / 'data' / 'fleet.db'}"
    assert config.keys.fleet_files == (str(tmp_path / "keys/fleet.key"),)
    assert config.keys.keyring == "/etc/keyring.json"
    assert config.timings.desired_ttl == 7 * 86_400


def test_the_environment_wins(tmp_path):
    config = load(
        tmp_path,
        GOOD + "[http]\nport = 1\n",
        EDGEPACK_FLEET_HTTP_PORT="0",
        EDGEPACK_FLEET_TENANT="acme",
        EDGEPACK_FLEET_TIMINGS_TICK="0.5",
        EDGEPACK_TOKEN="somebody else's",
    )
    assert (config.http.port, config.tenant, config.timings.tick) == (0, "acme", 0.5)


def test_an_unknown_variable_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="EDGEPACK_FLEET_HTTP_PROT is not a setting"):
        load(tmp_path, EDGEPACK_FLEET_HTTP_PROT="1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "data_dir|keys"),
        (GOOD + "[http]\nprot = 1\n", "prot"),
        ("wrong = 1\n" + GOOD, "wrong"),
        (GOOD + "[http]\nport = 70000\n", r"http\.port"),
        (GOOD + "[mqtt]\nprotocol = '4'\n", r"mqtt\.protocol"),
        (GOOD + "[mqtt]\nclient_certificate = 'c'\n", r"mqtt\.client_key"),
        (GOOD + "[mqtt]\nclient_certificate = 'c'\nclient_key = 'k'\n", r"mqtt\.tls_ca"),
        (GOOD + "[mqtt]\npassword_file = 'p'\n", r"mqtt\.username"),
        (GOOD + "[mqtt]\nbroker_pid_file = 'p'\n", r"mqtt\.crl_file"),
        (GOOD.replace(OWNER, "abc"), r"keys\.owner"),
        ("tenant = 'No Good'\n" + GOOD, "tenant"),
        (GOOD + "[timings]\ntick = 0\n", r"timings\.tick"),
        (GOOD + "[timings]\ntick = 5\nlease = 5\n", r"timings\.lease"),
        (GOOD + "[timings]\ndesired_ttl = 60\n", r"timings\.desired_refresh"),
        ("[", "TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path, text, names):
    with pytest.raises(ConfigError, match=names):
        load(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml", {})


def test_fleet_keys_may_be_several_files(tmp_path):
    config = load(tmp_path, GOOD.replace('"keys/fleet.key"', '["fleet-2.key", "/etc/fleet.key"]'))
    assert config.keys.fleet_files == (str(tmp_path / "fleet-2.key"), "/etc/fleet.key")
    with pytest.raises(ConfigError, match="fleet"):
        load(tmp_path, GOOD.replace('"keys/fleet.key"', "[]"))


PAIR = "[keys]\nauthority = {}\nauthority_certificate = {}\n"


def test_authorities_may_be_one_or_several(tmp_path):
    one = GOOD.replace("[keys]\n", PAIR.format('"a.key"', '"a.pem"'))
    keys = load(tmp_path, one).keys
    assert keys.authority_files == (str(tmp_path / "a.key"),)
    assert keys.authority_certificate_files == (str(tmp_path / "a.pem"),)
    two = GOOD.replace("[keys]\n", PAIR.format('["a.key", "/b.key"]', '["a.pem", "/b.pem"]'))
    keys = load(tmp_path, two).keys
    assert keys.authority_files == (str(tmp_path / "a.key"), "/b.key")
    assert keys.authority_certificate_files == (str(tmp_path / "a.pem"), "/b.pem")
    assert load(tmp_path, GOOD).keys.authority_files == ()


@pytest.mark.parametrize(
    ("key", "certificate", "said"),
    [
        ('["a.key", "b.key"]', '"a.pem"', "names 2 files and keys.authority_certificate 1"),
        ('"a.key"', '["a.pem", "b.pem"]', "in the same order"),
        ("[]", "[]", r"keys\.authority"),
    ],
)
def test_every_authority_needs_key_and_certificate(tmp_path, key, certificate, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, GOOD.replace("[keys]\n", PAIR.format(key, certificate)))


def test_every_setting_has_a_variable():
    names = environment_names()
    assert {"EDGEPACK_FLEET_DATA_DIR", "EDGEPACK_FLEET_MQTT_PASSWORD_FILE"} <= names
    assert "EDGEPACK_FLEET_HTTP" not in names
