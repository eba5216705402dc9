"""``edgepack healthcheck``: exit codes for probes, against real sockets."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from certificate_files import make_tls

from edgepack_cli.commands import healthcheck
from edgepack_cli.commands.healthcheck import Place, of_config


class Daemon(http.server.BaseHTTPRequestHandler):
    """As much of a daemon as a probe sees; its model is missing."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status = 200 if self.path.endswith("/live") else 503
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


class UnixServer(socketserver.UnixStreamServer):
    def get_request(self):
        return self.socket.accept()[0], ("", 0)


@contextlib.contextmanager
def serving(server):
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


@pytest.fixture
def daemon():
    with serving(http.server.HTTPServer(("127.0.0.1", 0), Daemon)) as server:
        yield server


@pytest.fixture
def tls(tmp_path):
    return make_tls(tmp_path / "tls")


@pytest.fixture
def tls_daemon(tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server = http.server.HTTPServer(("127.0.0.1", 0), Daemon)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server


def test_alive_but_not_ready(cli, daemon):
    url = f"http://127.0.0.1:{daemon.server_port}"
    assert (cli("healthcheck", "--url", url).code, daemon.asked) == (0, ["/v2/health/live"])
    assert cli("healthcheck", "--url", url, "--live").code == 0
    ended = cli("healthcheck", "--url", url, "--ready")
    assert ended.code == 1
    assert f"not well: {url}: /v2/health/ready answered 503" in ended.err


def test_a_url_with_a_folder_in_front(cli, daemon):
    assert cli("healthcheck", "--url", f"http://127.0.0.1:{daemon.server_port}/pi-1/").code == 0
    assert daemon.asked == ["/pi-1/v2/health/live"]


def test_a_unix_socket(cli, tmp_path):
    path = tmp_path / "serve.sock"
    with serving(UnixServer(str(path), Daemon)):
        assert cli("healthcheck", "--unix-socket", path).code == 0
        assert cli("healthcheck", "--unix-socket", path, "--ready").code == 1
    ended = cli("healthcheck", "--unix-socket", tmp_path / "none.sock")
    assert ended.code == 1
    assert "No such file" in ended.err


def test_nobody_there(cli):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = cli("healthcheck", "--url", f"http://127.0.0.1:{port}")
    assert ended.code == 1
    assert "refused" in ended.err


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00" * 9])
def test_something_else_there(cli, answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=once)
        thread.start()
        ended = cli("healthcheck", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(60)
    assert ended.code == 1
    assert ended.err.startswith("not well: ")


def test_somebody_who_never_answers(cli, monkeypatch):
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = cli("healthcheck", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert ended.code == 1
    assert "timed out" in ended.err


def test_tls_by_url_wants_a_certificate_that_counts(cli, tls_daemon, tls, monkeypatch):
    url = f"https://127.0.0.1:{tls_daemon.server_port}"
    ended = cli("healthcheck", "--url", url)
    assert ended.code == 1
    assert "certificate verify failed" in ended.err
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    assert cli("healthcheck", "--url", url).code == 0


def test_tls_by_the_configuration_of_this_machine(cli, tls_daemon, tmp_path):
    config = tmp_path / "device.toml"
    port = tls_daemon.server_port
    config.write_text(f'[serve]\nhost = "0.0.0.0"\nport = {port}\ntls_certificate = "tls.pem"\n')
    assert cli("healthcheck", "--config", config).code == 0
    assert cli("healthcheck", "--config", config, "--ready").code == 1


def test_the_environment_wins_over_the_configuration(cli, daemon, tmp_path, monkeypatch):
    config = tmp_path / "device.toml"
    config.write_text("[serve]\nport = 1\n")
    assert cli("healthcheck", "--config", config).code == 1
    monkeypatch.setenv("EDGEPACK_SERVE_PORT", str(daemon.server_port))
    assert cli("healthcheck", "--config", config).code == 0


LOCAL = Place("127.0.0.1", 8000, known=False)


@pytest.mark.parametrize(
    ("table", "environ", "place"),
    [
        ({}, {}, LOCAL),
        ({"serve": {"host": "0.0.0.0", "port": 9}}, {}, Place("127.0.0.1", 9, known=False)),
        ({"serve": {"host": "::", "port": 9}}, {}, Place("::1", 9, known=False)),
        ({"serve": {"host": "192.0.2.1"}}, {}, Place("192.0.2.1", 8000, known=False)),
        ({"serve": {"tls_certificate": "c"}}, {}, Place("127.0.0.1", 8000, tls=True, known=False)),
        ({"serve": {"unix_socket": "s"}}, {}, Place(unix_socket="/etc/s")),
        ({"serve": {"unix_socket": "/run/s"}}, {}, Place(unix_socket="/run/s")),
        ({}, {"EDGEPACK_SERVE_UNIX_SOCKET": "s"}, Place(unix_socket="/etc/s")),
        ({"ops": {"host": "0.0.0.0"}, "serve": {"port": 0}}, {}, Place("127.0.0.1", 9464)),
        ({"ops": {"host": "::1", "port": 7}}, {}, Place("::1", 7)),
        ({"ops": {"port": 7}}, {"EDGEPACK_OPS_HOST": "127.0.0.1"}, Place("127.0.0.1", 7)),
        ({"serve": "nonsense", "ops": 3}, {}, LOCAL),
        ({"state_dir": "s", "serve": {"port": 0}}, {}, Place(unix_socket="/etc/s/control.sock")),
        ({"state_dir": "/s"}, {"EDGEPACK_SERVE_PORT": "0"}, Place(unix_socket="/s/control.sock")),
        ({"state_dir": "/s"}, {}, LOCAL),
    ],
    ids=str,
)
def test_where_a_configuration_says_the_daemon_is(table, environ, place):
    assert of_config(table, environ, Path("/etc")) == place


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (LOCAL, "http://127.0.0.1:8000"),
        (Place("::1", 7, tls=True, path="/a"), "https://[::1]:7/a"),
        (Place(unix_socket="/run/s"), "/run/s"),
    ],
)
def test_a_place_is_named_as_users_write_it(place, text):
    assert str(place) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://a", "--unix-socket", "s"], "give one of"),
        (["--url", "ftp://a"], "not an http or https URL"),
        (["--url", "nonsense"], "not an http or https URL"),
        (["--url", "http://[::1"], "Invalid IPv6 URL"),
        (["--url", "http://a:port"], "Port could not be cast"),
        (["--config", "/none/device.toml"], "cannot read /none/device.toml: No such file"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_usage_is_2(cli, words, said):
    ended = cli("healthcheck", *words)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"serve =", "is not TOML"), (b"\xff", "is not TOML"),
        (b"[serve]\nport = 0", "port 0 cannot be asked; name the daemon with --url"),
        (b"[serve]\nport = 70000", "port 70000"), (b'[serve]\nport = "\xc2\xb9"', "port"),
        (b"[serve]\nport = true", "port True"), (b"[ops]\nhost = 'a'\nport = -1", "port -1"),
    ],
)  # fmt: skip
def test_a_configuration_that_names_no_place_is_2(cli, tmp_path, text, said):
    config = tmp_path / "device.toml"
    config.write_bytes(text)
    ended = cli("healthcheck", "--config", config)
    assert ended.code == 2
    assert said in ended.err


def test_a_probe_loads_little():
    code = (
        "import sys\n"
        "from edgepack_cli.main import run\n"
        "assert run(['healthcheck', '--unix-socket', '/none']) == 1\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    ours = {"edgepack_cli", "edgepack_contract", "edgepack_runtime", "click"}
    assert loaded - ours <= {"__main__", *site_hooks()}


def site_hooks():
    """What the interpreter loads before anybody asks: hooks of packages in ``site-packages``."""
    code = "import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
