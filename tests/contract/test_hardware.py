from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.errors import ConfigError
from edgepack_contract.hardware import (
    FEATURES,
    detect_hardware,
    this_machine,
    x86_features,
)

V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"

XEON = "".join(
    f"processor\t: {core}\nmodel name\t: Intel(R) Xeon(R) Processor @ 2.50GHz\n"
    f"flags\t\t: fpu vme {V4} avx512_vnni\n\n"
    for core in range(2)
)
PI_4 = (
    "".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
        "CPU implementer\t: 0x41\n\n"
        for core in range(4)
    )
    + "Revision\t: c03111\nModel\t\t: Raspberry Pi 4 Model B Rev 1.1\n"
)
PI_5 = PI_4.replace("crc32", "crc32 atomics fphp asimdhp asimddp").replace("Pi 4", "Pi 5")


def detect(machine: str, cpuinfo: str, *, meminfo: str = "MemTotal:  8000000 kB\n", limit=""):
    return detect_hardware(
        machine=machine,
        cpuinfo=cpuinfo,
        meminfo=meminfo,
        memory_limit=limit,
        onnxruntime="1.31.0",
    )


def test_x86_server():
    found = detect("x86_64", XEON)
    assert (found.os, found.architecture, found.variant) == ("linux", "amd64", None)
    assert {"x86-64-v2", "x86-64-v3", "x86-64-v4", "avx512_vnni", "avx2"} <= set(found.features)
    assert "fpu" not in found.features
    assert found.features == sorted(found.features)
    assert (found.cores, found.memory_bytes) == (2, 8_192_000_000)
    assert found.model == "Intel(R) Xeon(R) Processor @ 2.50GHz"


@pytest.mark.parametrize(
    ("cpuinfo", "features", "model"),
    [
        (PI_4, ["asimd"], "Raspberry Pi 4 Model B Rev 1.1"),
        (PI_5, ["asimd", "asimddp", "asimdhp"], "Raspberry Pi 5 Model B Rev 1.1"),
    ],
)
def test_arm_boards(cpuinfo, features, model):
    found = detect("aarch64", cpuinfo)
    assert (found.architecture, found.variant, found.cores) == ("arm64", "v8", 4)
    assert (found.features, found.model) == (features, model)


def test_a_feature_counts_only_when_every_core_has_it():
    little = PI_5.replace("asimddp", "", 1)
    assert detect("aarch64", little).features == ["asimd", "asimdhp"]


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("", []),
        (V2, ["x86-64-v2"]),
        (V3, ["x86-64-v2", "x86-64-v3"]),
        (V4, ["x86-64-v2", "x86-64-v3", "x86-64-v4"]),
        (V4.replace("popcnt", ""), []),
        (V4.replace("movbe", ""), ["x86-64-v2"]),
    ],
)
def test_levels_are_complete_or_absent(flags, levels):
    features = x86_features(frozenset(flags.split()))
    assert [one for one in features if one.startswith("x86-64")] == levels


@given(st.sets(st.sampled_from(V4.split())), st.sets(st.sampled_from(V4.split())))
def test_more_flags_never_mean_fewer_features(some, more):
    assert set(x86_features(frozenset(some))) <= set(x86_features(frozenset(some | more)))
    assert set(x86_features(frozenset(some))) <= FEATURES


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("", 8_192_000_000), ("max\n", 8_192_000_000), ("1000\n", 1000), (f"{2**62}", 8_192_000_000)],
)
def test_a_container_has_the_smaller_memory(limit, expected):
    assert detect("x86_64", XEON, limit=limit).memory_bytes == expected


def test_unknown_memory_is_none():
    assert detect("x86_64", XEON, meminfo="").memory_bytes == 0


@pytest.mark.parametrize(("machine", "cpuinfo"), [("riscv64", XEON), ("x86_64", ""), ("", "")])
def test_refuses_what_it_cannot_read(machine, cpuinfo):
    with pytest.raises(ConfigError) as refusal:
        detect(machine, cpuinfo)
    assert refusal.value.code == "unsupported-machine"


def test_this_machine():
    found = this_machine(onnxruntime="1.31.0")
    assert found.cores >= 1
    assert found.memory_bytes > 0
    assert set(found.features) <= FEATURES
