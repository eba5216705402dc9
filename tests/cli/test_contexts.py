"""The file of contexts: whole, strict, and nobody else's."""

from __future__ import annotations

import pytest

from edgepack_cli.client import FleetClient, from_environment
from edgepack_cli.contexts import (
    Contexts,
    Site,
    check_token,
    check_url,
    contexts_path,
    name_of,
    read_contexts,
    selected,
    write_contexts,
)
from edgepack_cli.errors import CommandError
from edgepack_contract.errors import ConfigError

SITE = Site(
    url="https://f.example", token="epa_x", owner="ab" * 32, authorities=("-----B\n-----E",)
)
LOCAL = Site(url="http://127.0.0.1:8080", token='q"u\\o')
BOTH = Contexts(current="site", contexts={"site": SITE, "local": LOCAL})


@pytest.fixture
def home(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    write_contexts(contexts_path(environ), BOTH)
    return environ


def test_what_is_written_is_read_and_only_its_owner_can(home, tmp_path):
    path = contexts_path(home)
    assert path == tmp_path / "edgepack" / "contexts.toml"
    assert read_contexts(path) == BOTH
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    write_contexts(path, BOTH.without("site"))
    assert read_contexts(path) == Contexts(contexts={"local": LOCAL})
    assert [one.name for one in path.parent.iterdir()] == ["contexts.toml"]


@pytest.mark.parametrize(("mode", "folder"), [(0o640, 0o700), (0o604, 0o700), (0o600, 0o770)])
def test_a_file_that_others_can_read_or_replace_is_not_used(home, mode, folder):
    path = contexts_path(home)
    path.chmod(mode)
    path.parent.chmod(folder)
    with pytest.raises(CommandError, match=r"run: chmod [67]00 ") as got:
        from_environment(home)
    assert got.value.exit_code == 78


@pytest.mark.parametrize("text", ["nonsense", "current = 5", "[contexts.a]\n", "other = 1"])
def test_a_file_of_something_else_is_refused_by_its_name(home, text):
    contexts_path(home).write_text(text)
    with pytest.raises(ConfigError, match=r"contexts\.toml"):
        selected(home)


def test_without_a_home_there_are_none_and_none_are_kept():
    assert contexts_path({}) is None
    assert contexts_path({"HOME": "/h"}).as_posix() == "/h/.config/edgepack/contexts.toml"
    assert read_contexts(None) == Contexts()
    with pytest.raises(CommandError, match="EDGEPACK_TOKEN"):
        write_contexts(None, BOTH)


def test_commands_go_to_the_current_or_to_the_chosen_context(home):
    site = FleetClient("https://f.example", "epa_x", ("-----B\n-----E",), "ab" * 32)
    assert from_environment(home) == site
    local = FleetClient("http://127.0.0.1:8080", 'q"u\\o')
    assert from_environment(home | {"EDGEPACK_CONTEXT": "local"}) == local
    with pytest.raises(CommandError, match="there are: local, site"):
        from_environment(home | {"EDGEPACK_CONTEXT": "other"})


def test_the_environment_goes_before_a_context_whose_token_goes_nowhere_else(home):
    elsewhere = home | {"EDGEPACK_FLEET": "https://other.example"}
    with pytest.raises(CommandError, match="no token"):
        from_environment(elsewhere)
    other = from_environment(elsewhere | {"EDGEPACK_TOKEN": "t"})
    assert other == FleetClient("https://other.example", "t")
    mine = from_environment(home | {"EDGEPACK_TOKEN": "t"})
    assert (mine.url, mine.token, mine.owner) == ("https://f.example", "t", "ab" * 32)


def test_a_file_of_authorities_may_be_named(tmp_path):
    (tmp_path / "ca.pem").write_text("PEM")
    environ = {"EDGEPACK_TOKEN": "t", "EDGEPACK_CA": str(tmp_path / "ca.pem")}
    assert from_environment(environ | {"EDGEPACK_FLEET": "https://f"}).authorities == ("PEM",)
    assert from_environment(environ).authorities == ()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://fleet.example", "plain http"),
        ("http://10.0.0.1:8080", "plain http"),
        ("ftp://fleet", "expected"),
        ("https://", "expected"),
        ("https://user@fleet", "expected"),
        ("https://fleet/path", "expected"),
        ("https://fleet:port", "expected"),
        ("https://[", "expected"),
        ("", "expected"),
    ],
)
def test_what_is_no_address_or_would_show_the_token_is_refused(url, words):
    with pytest.raises(CommandError, match=words) as got:
        check_url(url, what="URL")
    assert got.value.exit_code == 2


def test_addresses_and_names():
    assert check_url(" https://Fleet.example:8443/ ", what="x") == "https://Fleet.example:8443"
    assert check_url("http://[::1]:8080", what="x") == "http://[::1]:8080"
    assert (name_of("https://Fleet.example:1"), name_of("http://[::1]")) == (
        "fleet-example", "local",
    )  # fmt: skip


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "ü", "x" * 1025])
def test_what_is_no_token_is_refused_and_not_repeated(token):
    with pytest.raises(CommandError, match="not a token") as got:
        check_token(token)
    assert not token or token not in str(got.value)
