from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError, SourceError
from edgepack_runtime.sources.addresses import checked_url, redirected

FLEET = "https://fleet.example:8443/models"
LOCAL = "http://127.0.0.1:5000/models"


@pytest.mark.parametrize(
    "url", [FLEET, LOCAL, "https://r.example/a/b", "http://[::1]:5000/models", "http://localhost/m"]
)
def test_addresses_of_repositories(url):
    assert checked_url(url).geturl() == url


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://fleet.example/models", "insecure-source"),
        ("http://10.0.0.1:8000/models", "insecure-source"),
        ("https://fleet.example:0x/models", "bad-source"),
        ("models", "bad-source"),
        ("https://fleet.example", "bad-source"),
        ("https://fleet.example/", "bad-source"),
        ("https:///models", "bad-source"),
        ("https://me:pass@fleet.example/models", "bad-source"),
        ("https://fleet.example/models?a=1", "bad-source"),
        ("https://fleet.example/models#a", "bad-source"),
        ("https://fleet.example:0/models", "bad-source"),
        ("https://fleet.example:99999/models", "bad-source"),
        ("https://[::1/models", "bad-source"),
        ("ftp://fleet.example/models", "bad-source"),
    ],
)
def test_what_is_no_address_of_a_repository(url, code):
    with pytest.raises(ConfigError) as caught:
        checked_url(url)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("here", "location", "leads"),
    [
        (FLEET, "/v2/other", "https://fleet.example:8443/v2/other"),
        (FLEET, "https:///b", "https://fleet.example:8443/b"),
        (FLEET, "https://store.example/b?sig=1", "https://store.example/b?sig=1"),
        (LOCAL, "http://127.0.0.1:9000/b", "http://127.0.0.1:9000/b"),
        (LOCAL, "https://localhost:9000/b", "https://localhost:9000/b"),
        (LOCAL, "https://store.example/b", "https://store.example/b"),
    ],
)
def test_blobs_may_be_in_a_store(here, location, leads):
    assert redirected(checked_url(here), location, elsewhere=True).geturl() == leads


@pytest.mark.parametrize(
    ("here", "location"),
    [
        (FLEET, "http://store.example/b"),
        (FLEET, "http://fleet.example:8443/b"),
        (FLEET, "https://127.0.0.1/b"),
        (FLEET, "http://localhost:22/b"),
        (FLEET, "https://[::1]/b"),
        (FLEET, "file:///etc/passwd"),
        (FLEET, "https://me@store.example/b"),
        (FLEET, "https://store.example:0/b"),
        (FLEET, "https://[::1/b"),
        (LOCAL, "http://store.example/b"),
        ("https://127.0.0.1:5000/models", "http://127.0.0.1:5000/b"),
    ],
)
def test_stores_are_other_hosts_by_https(here, location):
    with pytest.raises(SourceError) as caught:
        redirected(checked_url(here), location, elsewhere=True)
    assert caught.value.code == "bad-redirect"


def test_only_blobs_may_be_elsewhere():
    here = checked_url(FLEET)
    assert redirected(here, "/v2/x", elsewhere=False).path == "/v2/x"
    with pytest.raises(SourceError, match="only itself is allowed"):
        redirected(here, "https://store.example/b", elsewhere=False)
