"""``edgepack oci`` against Debian's ``docker-registry``: a login, TLS, and skopeo beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bundle_samples import PUBLISHER, three_variants
from certificate_files import make_tls
from docker_registry import PASSWORD, USER, registry

from edgepack_contract.layout import write_bundle
from edgepack_contract.oci import evidence_tag, signature_tag

pytestmark = pytest.mark.foreign("docker-registry", "skopeo")


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "digits.edgepack"
    digest = write_bundle(
        path, three_variants(), signer=PUBLISHER, evidence={"report.json": b'{"p50_ms":1.5}'}
    )
    return path, digest


def oci(*words, typed="", home=None):
    return subprocess.run(
        [sys.executable, "-m", "edgepack_cli", "oci", *map(str, words)], input=typed,
        capture_output=True, text=True, timeout=120, check=False,
        env=None if home is None else {"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def skopeo(*words):
    done = subprocess.run(["skopeo", "--insecure-policy", *map(str, words)], capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pushed_and_pulled_it_is_the_same_file(bundle, tmp_path):
    path, digest = bundle
    with registry(tmp_path / "r") as address:
        done = oci("push", path, f"{address}/models/digits")
        assert (done.returncode, done.stdout) == (
            0, f"{address}/models/digits:1.0.0@{digest}\n",
        ), done.stderr  # fmt: skip
        again = oci("push", path, f"{address}/models/digits")
        assert "0 B sent" in again.stderr
        mounted = oci("push", path, f"{address}/models/other", "--mount-from", "models/digits")
        assert "0 B sent" in mounted.stderr
        done = oci("pull", f"{address}/models/other@{digest}", "-o", tmp_path / "back.edgepack")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back.edgepack").read_bytes() == path.read_bytes()


def test_skopeo_reads_what_was_pushed_and_what_it_pushed_is_pulled(bundle, tmp_path):
    path, digest = bundle
    with registry(tmp_path / "r") as address:
        assert oci("push", path, f"{address}/a").returncode == 0
        for tag in ("1.0.0", signature_tag(digest), evidence_tag(digest)):
            skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false",
                   "--dest-tls-verify=false", f"docker://{address}/a:{tag}",
                   f"docker://{address}/b:{tag}")  # fmt: skip
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{address}/b:1.0.0")
        assert '"dev.edgepack.name":"digits"' in raw
        done = oci("pull", f"{address}/b:1.0.0", "-o", tmp_path / "back.edgepack")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back.edgepack").read_bytes() == path.read_bytes()


def test_a_registry_with_a_login(bundle, tmp_path):
    path, _ = bundle
    with registry(tmp_path / "r", login=True) as address:
        refused = oci("push", path, f"{address}/a", home=tmp_path)
        assert refused.returncode == 3
        assert "does not let you (401)" in refused.stderr
        login = ("--username", USER, "--password-stdin")
        done = oci("push", path, f"{address}/a", *login, typed=f"{PASSWORD}\n")
        assert done.returncode == 0, done.stderr
        stored = tmp_path / ".docker" / "config.json"
        skopeo("login", "--tls-verify=false", "--authfile",
               stored, "-u", USER, "-p", PASSWORD, address)  # fmt: skip
        out = tmp_path / "back.edgepack"
        done = oci("pull", f"{address}/a:1.0.0", "-o", out, home=tmp_path)
        assert done.returncode == 0, done.stderr
    assert out.read_bytes() == path.read_bytes()


def test_a_private_authority_is_believed_when_it_is_named(bundle, tmp_path):
    path, _ = bundle
    files = make_tls(tmp_path / "tls")
    tls = f", tls: {{certificate: {files.certificate}, key: {files.key}}}"
    with registry(tmp_path / "r", tls=tls) as address:
        done = oci("push", path, f"{address}/a", "--ca", files.authority)
        assert done.returncode == 0, done.stderr
        refused = oci("push", path, f"{address}/b", "--tls")
        assert refused.returncode == 3
        assert "the certificate of 127.0.0.1" in refused.stderr
