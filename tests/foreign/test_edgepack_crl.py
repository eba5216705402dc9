"""The script that fetches the list of revoked certificates on the machine of a broker."""

from __future__ import annotations

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from broker_process import SECONDS
from broker_tls import HOST, new_authority, wall_ms

pytestmark = pytest.mark.foreign("curl", "openssl")

SCRIPT = Path(__file__).parents[2] / "deploy" / "mosquitto" / "edgepack-crl"


class Service(ThreadingHTTPServer):
    """Answers with ``body`` and ``status`` whatever it is asked, and remembers what that was."""

    body, status = b"", 200

    def __init__(self):
        super().__init__((HOST, 0), Handler)
        self.asked = []
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def close(self):
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass


def listing(authority, *serials):
    revoked = [(serial, wall_ms()) for serial in serials]
    return authority.revocation_list(revoked, now_ms=wall_ms())


class Machine:
    """The folder of a broker, and the service that the script asks."""

    def __init__(self, folder):
        self.folder = folder
        self.service = Service()
        self.authority = new_authority()
        (folder / "ca.pem").write_bytes(self.authority.pem)
        self.list = folder / "crl.pem"
        self.reloaded = folder / "reloaded"

    def offer(self, *serials, by=None):
        self.service.body = listing(by or self.authority, *serials)

    def fetch(self):
        """Run the script; whether the broker was reloaded, and what was said."""
        self.reloaded.unlink(missing_ok=True)
        url = f"http://{HOST}:{self.service.server_port}"
        done = subprocess.run(
            [SCRIPT, url, self.folder, "touch", self.reloaded],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        left = {path.name for path in self.folder.iterdir()} - {"ca.pem", "crl.pem", "reloaded"}
        assert left == set()
        return done.returncode, self.reloaded.exists(), done.stderr


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.service.close()


def test_a_new_list_is_put_in_place_and_read_and_the_same_one_is_not(machine):
    for serials in ((), ("a1",), ("a1", "b2")):
        machine.offer(*serials)
        assert machine.fetch() == (0, True, "")
        assert machine.list.read_bytes() == machine.service.body
        assert machine.list.stat().st_mode & 0o777 == 0o644
        machine.offer(*serials)  # with another date
        assert machine.fetch() == (0, False, "")
    assert set(machine.service.asked) == {"/api/v1/crl"}


@pytest.mark.parametrize("bad", ["page", "empty", "half", "stranger", "error", "away"])
def test_what_is_no_list_of_the_authority_changes_nothing(machine, bad):
    machine.offer("a1")
    machine.fetch()
    before = machine.list.read_bytes()
    machine.offer("a1", "b2", by=new_authority("somebody else") if bad == "stranger" else None)
    whole = machine.service.body
    machine.service.body = {"page": b"<html>", "empty": b"", "half": whole[:200]}.get(bad, whole)
    machine.service.status = 503 if bad == "error" else 200
    if bad == "away":
        machine.service.server_port = 1
    code, reloaded, said = machine.fetch()
    assert code != 0
    assert not reloaded
    assert said
    assert machine.list.read_bytes() == before


def test_a_spoilt_list_is_replaced(machine):
    machine.list.write_bytes(b"spoilt")
    machine.offer("a1")
    assert machine.fetch()[:2] == (0, True)
    assert machine.list.read_bytes() == machine.service.body


@pytest.fixture(params=["other name", "same name"])
def former(machine, request):
    """An authority that has a successor; both are in force."""
    same = request.param == "same name"
    former = new_authority("edgepack test" if same else "edgepack former")
    (machine.folder / "ca.pem").write_bytes(former.pem + machine.authority.pem)
    return former


@pytest.mark.parametrize("first", ["former", "newer"])
def test_every_authority_has_its_list_and_a_change_of_any_is_read(machine, former, first):
    def offer(of_former, of_newer):
        lists = [listing(former, *of_former), listing(machine.authority, *of_newer)]
        machine.service.body = b"".join(lists if first == "former" else lists[::-1])
        return lists

    for serials in (((), ()), (("a1",), ()), (("a1",), ("b2",))):
        lists = offer(*serials)
        assert machine.fetch() == (0, True, "")
        assert machine.list.read_bytes() == b"".join(lists)
        offer(*serials)
        assert machine.fetch() == (0, False, "")


def test_while_one_has_no_list_nothing_changes_because_its_devices_would_be_refused(
    machine, former
):
    machine.service.body = listing(machine.authority) + listing(former)
    assert machine.fetch()[:2] == (0, True)
    before = machine.list.read_bytes()
    machine.service.body = listing(machine.authority, "a1") + listing(new_authority(), "b2")
    code, reloaded, said = machine.fetch()
    assert (code, reloaded) == (1, False)
    assert former.certificate.subject.rfc4514_string().removeprefix("CN=") in said
    assert machine.list.read_bytes() == before


def test_the_list_of_one_that_is_believed_no_more_is_left_out(machine):
    gone = new_authority("edgepack gone")
    machine.service.body = listing(gone, "b2") + listing(machine.authority, "a1")
    assert machine.fetch() == (0, True, "")
    assert machine.list.read_bytes() == listing_of(machine.service.body, 1)


def listing_of(pem, number):
    begin = b"-----BEGIN X509 CRL-----"
    return begin + pem.split(begin)[number + 1]
