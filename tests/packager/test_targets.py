"""Every device config is valid; and which machine is which."""

import pytest

from edgepack_contract.hardware import Hardware
from edgepack_packager import RecipeError
from edgepack_packager.targets import config_folder, load_target, parse_target, target_names

REQUIRED = {
    "rpi4", "rpi5", "jetson-orin-nano", "x86-64-v2", "x86-64-v3", "x86-64-v4-vnni",
    "generic-arm64", "generic-amd64",
}  # fmt: skip


def machine(architecture, *features, model="a machine"):
    return Hardware(
        os="linux", architecture=architecture, variant=None, features=sorted(features), cores=4,
        memory_bytes=2**32, model=model, onnxruntime="1.31.1",
    )  # fmt: skip


@pytest.mark.parametrize("name", target_names())
def test_every_device_config_is_valid(name):
    target = load_target(name)
    assert target.name == name
    assert "fp32" in target.precision
    assert target.provenance.source


def test_the_promised_ones_are_there_and_documented():
    assert set(target_names()) >= REQUIRED
    readme = (config_folder() / "README.md").read_text()
    fields = load_target("rpi5").__struct_fields__
    assert [
        field for field in fields if f"`{field}`" not in readme and f"[{field}]" not in readme
    ] == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "rpi5"', 'name = "rpi6"', "file's name"),
        ('"asimd", "asimddp"', '"asimddp", "asimd"', "sorted"),
        ('"asimddp"', '"asimddt"', "unknown feature"),
        ("cores = 4", "corse = 4", "corse"),
        ("cores = 4", "cores = 0", "cores"),
        ('model = "Raspberry Pi 5"', "", "recognised by its model"),
        ('status = "published"', 'status = "guessed"', "status"),
    ],
)
def test_a_wrong_device_config_is_refused(old, new, words):
    raw = (config_folder() / "rpi5.toml").read_text()
    assert old in raw
    with pytest.raises(RecipeError, match=words):
        parse_target(raw.replace(old, new).encode(), name="rpi5")


def test_a_name_leaves_room_for_alternatives():
    raw = (config_folder() / "rpi5.toml").read_text()
    name = "a" * 60
    with pytest.raises(RecipeError, match="alternatives add to it"):
        parse_target(raw.replace('"rpi5"', f'"{name}"').encode(), name=name)


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"rpi5"):
        load_target("toaster")


V3 = load_target("x86-64-v3").features
VNNI = load_target("x86-64-v4-vnni").features
PI = ("asimd", "asimddp", "asimdhp")


@pytest.mark.parametrize(
    ("target", "hardware", "same"),
    [
        ("x86-64-v3", machine("amd64", *V3), True),
        ("x86-64-v3", machine("amd64", *VNNI), False),  # faster kernels: another timing
        ("x86-64-v3", machine("amd64", "sse4_2", "x86-64-v2"), False),
        ("x86-64-v4-vnni", machine("amd64", *VNNI, "avx512_bf16"), True),
        ("x86-64-v4-vnni", machine("arm64", *PI), False),
        ("generic-amd64", machine("amd64", *VNNI), True),
        ("generic-amd64", machine("arm64", *PI), False),
        ("rpi5", machine("arm64", *PI, model="Raspberry Pi 5 Model B Rev 1.0"), True),
        ("rpi5", machine("arm64", *PI, model="Rockchip RK3588"), False),
    ],
)
def test_a_timing_counts_only_on_the_same_kind_of_machine(target, hardware, same):
    assert load_target(target).is_this(hardware) is same


@pytest.mark.parametrize(
    ("target", "reduced"),
    [("x86-64-v3", True), ("x86-64-v4-vnni", False), ("rpi4", False), ("generic-amd64", True)],
)
def test_weights_keep_to_seven_bits_without_vnni(target, reduced):
    assert load_target(target).needs_reduced_range is reduced
