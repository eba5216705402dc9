"""The first admin is made on the service's machine before it runs: no door is open for it."""

from __future__ import annotations

import pytest
from fleet_http import make_keys, open_fleet

from edgepack_contract.errors import ConfigError
from edgepack_fleet.__main__ import EXIT_CONFIG, EXIT_FAILED, main
from edgepack_fleet.config import HttpConfig, configured_url


@pytest.fixture
def config(tmp_path):
    keys = make_keys(tmp_path)
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'data_dir = "."\n[keys]\nfleet = "{keys.fleet}"\nkeyring = "{keys.keyring}"\n'
        f'owner = "{keys.owner}"\n[http]\npublic_url = "http://localhost:8080"\n'
    )
    return file


def test_the_first_admin_logs_in_with_what_was_printed(tmp_path, config, capsys):
    assert main(["init", "--config", str(config), "--name", "anna"]) == 0
    url = capsys.readouterr().out.strip()
    address, _, code = url.partition("/#code=")
    assert address == "http://localhost:8080"
    assert code.encode() not in (tmp_path / "fleet.db").read_bytes()
    with open_fleet(tmp_path) as fleet:
        body = {"code": code, "password": "correct horse battery"}
        answer = fleet.client().post("/api/v1/login/code/password", json=body)
        assert answer.json()["role"] == "admin"
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        page = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
        made = fleet.client(**page).post("/api/v1/users", json={"name": "bert", "role": "viewer"})
        assert made.status_code == 201


def test_a_name_is_taken_once_and_another_is_a_way_back_in(config, capsys):
    assert main(["init", "--config", str(config), "--name", "anna"]) == 0
    assert main(["init", "--config", str(config), "--name", "anna"]) == EXIT_FAILED
    assert "'anna'" in capsys.readouterr().err
    assert main(["init", "--config", str(config), "--name", "bert"]) == 0
    assert main(["init", "--config", str(config), "--name", "Bad Name"]) == EXIT_FAILED


def test_beside_a_running_service_it_is_refused(tmp_path, config, capsys):
    with open_fleet(tmp_path):
        assert main(["init", "--config", str(config), "--name", "anna"]) == EXIT_FAILED
    assert "another fleet service" in capsys.readouterr().err


def test_without_an_address_it_is_refused_before_anything_is_made(config, capsys, monkeypatch):
    text = config.read_text().replace('public_url = "http://localhost:8080"', "port = 0")
    config.write_text(text)
    assert main(["init", "--config", str(config), "--name", "anna"]) == EXIT_CONFIG
    assert "http.public_url" in capsys.readouterr().err
    monkeypatch.setenv("EDGEPACK_FLEET_HTTP_PORT", "8080")
    assert main(["init", "--config", str(config), "--name", "anna"]) == 0


@pytest.mark.parametrize(
    ("http", "url"),
    [
        (HttpConfig(), "http://127.0.0.1:8080"), (HttpConfig(host="::1"), "http://[::1]:8080"),
        (HttpConfig(tls_certificate="c", tls_key="k", port=443), "https://127.0.0.1:443"),
        (HttpConfig(unix="/run/x", public_url="https://fleet.example/"), "https://fleet.example"),
    ],
)  # fmt: skip
def test_where_the_page_will_be(http, url):
    assert configured_url(http) == url


def test_a_unix_socket_alone_is_no_address():
    with pytest.raises(ConfigError, match="public_url"):
        configured_url(HttpConfig(unix="/run/x"))
