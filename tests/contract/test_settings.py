from __future__ import annotations

import msgspec
import pytest

from edgepack_contract.errors import ConfigError
from edgepack_contract.settings import load_settings


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: int = 80


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    http: Inner = Inner()
    rooms: dict[str, int] = {}


def load(tmp_path, text, environ=None):
    path = tmp_path / "some.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path, Outer, prefix="EDGEPACK", environ=environ or {})


def test_file_then_environment(tmp_path):
    text = 'name = "a"\n[http]\nport = 1'
    assert load(tmp_path, text) == Outer(name="a", http=Inner(port=1))
    changed = load(tmp_path, text, {"EDGEPACK_HTTP_PORT": "2", "EDGEPACK_NAME": "b", "HOME": "/"})
    assert changed == Outer(name="b", http=Inner(port=2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "a"\nnmae = "b"', "nmae"),
        ('name = "a"\n[http]\nprot = 1', "prot"),
        ('name = "a"\n[http]\nport = "eighty"', r"http\.port"),
        ("", "name"),
        ("name = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        ("# " + "x" * 300_000, "larger than"),
    ],
)
def test_a_bad_configuration_says_what_and_where(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path, text)
    assert "some.toml" in str(caught.value)


def test_an_unknown_key_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"Known keys: http\.port, name, rooms"):
        load(tmp_path, 'name = "a"\nnmae = "b"')


def test_an_unknown_variable_of_a_table_is_refused_and_those_of_others_are_not(tmp_path):
    others = {"EDGEPACK_TOKEN": "t", "EDGEPACK_HTTPS": "x", "EDGEPACK_NMAE": "x"}
    assert load(tmp_path, 'name = "a"', others) == Outer(name="a")
    with pytest.raises(ConfigError, match=r"EDGEPACK_HTTP_PROT is not a setting.*HTTP_PORT"):
        load(tmp_path, 'name = "a"', {"EDGEPACK_HTTP_PROT": "1"})


def test_a_value_of_a_wrong_type_is_told_without_a_list_of_keys(tmp_path):
    with pytest.raises(ConfigError, match=r"some\.toml.*http\.port") as caught:
        load(tmp_path, 'name = "a"\n[http]\nport = "x"')
    assert "Known keys" not in str(caught.value)


def test_a_variable_of_a_wrong_type_is_named_and_not_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"^EDGEPACK_HTTP_PORT: Expected `int`"):
        load(tmp_path, 'name = "a"', {"EDGEPACK_HTTP_PORT": "eighty"})


def test_a_variable_below_a_table_of_names_is_not_passed_over(tmp_path):
    with pytest.raises(ConfigError, match="EDGEPACK_ROOMS_KITCHEN is not a setting"):
        load(tmp_path, 'name = "a"', {"EDGEPACK_ROOMS_KITCHEN": "3"})


def test_a_variable_for_what_the_file_has_as_no_table(tmp_path):
    with pytest.raises(ConfigError, match=r"\$\.http"):
        load(tmp_path, 'name = "a"\nhttp = 5', {"EDGEPACK_HTTP_PORT": "1"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml", Outer, prefix="X", environ={})
