from __future__ import annotations

import msgspec
import pytest
from bundle_samples import describe
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.description import Budgets, Platform
from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.hardware import Hardware
from edgepack_contract.oci import INDEX_TYPE, ImageIndex, index_annotations, variant_descriptor
from edgepack_contract.variants import misfit, read_variants, select_variant

XEON = Hardware(
    os="linux",
    architecture="amd64",
    variant=None,
    features=["avx2", "avx512_vnni", "x86-64-v2", "x86-64-v3"],
    cores=2,
    memory_bytes=2_000_000_000,
    model="a server",
    onnxruntime="1.31.0",
)
PI = msgspec.structs.replace(
    XEON, architecture="arm64", variant="v8", features=["asimd", "asimddp"]
)
AMD = Platform(architecture="amd64")
ARM = Platform(architecture="arm64", variant="v8")


def index_of(**variants: dict) -> ImageIndex:
    described = [describe(variant=name, **changes) for name, changes in variants.items()]
    digest = f"sha256:{'1' * 64}"
    return ImageIndex(
        schema_version=2,
        media_type=INDEX_TYPE,
        manifests=[variant_descriptor(one, digest=digest, size=9) for one in described],
        annotations=index_annotations(described[0]),
    )


def ranked(index: ImageIndex, hardware: Hardware) -> list[str]:
    return [variant.name for variant in select_variant(index, hardware)]


def test_more_features_first_then_the_order_of_the_index():
    index = index_of(
        plain={"platform": AMD},
        also={"platform": AMD},
        v3={"platform": AMD, "features": ["x86-64-v3"]},
        vnni={"platform": AMD, "features": ["avx512_vnni", "x86-64-v3"]},
        amx={"platform": AMD, "features": ["amx_int8"]},
        arm={"platform": ARM},
    )
    assert ranked(index, XEON) == ["vnni", "v3", "plain", "also"]
    assert ranked(index, PI) == ["arm"]


def test_a_platform_without_variant_takes_any():
    assert ranked(index_of(arm={"platform": Platform(architecture="arm64")}), PI) == ["arm"]


@pytest.mark.parametrize(
    ("changes", "hardware", "reason"),
    [
        ({"platform": ARM}, XEON, "built for linux/arm64, this is linux/amd64"),
        ({"platform": ARM}, msgspec.structs.replace(PI, variant="v9"), "arm64 v8, this is v9"),
        ({"features": ["amx_int8", "avx2"]}, XEON, "the processor has no amx_int8"),
        ({"min_runtime": "1.32.0"}, XEON, "needs onnxruntime 1.32.0, 1.31.0 is installed"),
        ({"min_runtime": "1.9.0"}, msgspec.structs.replace(XEON, onnxruntime="?"), "1.9.0"),
        ({"budgets": Budgets(memory_bytes=2_000_000_001)}, XEON, "2000000001 bytes of memory"),
    ],
)
def test_each_reason_is_told(changes, hardware, reason):
    with pytest.raises(UnsupportedBundleError) as refusal:
        select_variant(index_of(a=changes, b=changes), hardware)
    assert refusal.value.code == "no-variant"
    assert str(refusal.value).count(reason) == 2
    assert "a: " in str(refusal.value)
    assert "b: " in str(refusal.value)


@pytest.mark.parametrize("installed", ["1.31.0", "1.31.1", "1.32.0", "2.0.0", "1.31.0+cpu", "1.31"])
def test_runtimes_that_are_new_enough(installed):
    hardware = msgspec.structs.replace(XEON, onnxruntime=installed)
    assert ranked(index_of(a={}), hardware) == ["a"]


@pytest.mark.parametrize("installed", ["1.30.9", "1.4.0", "0.99.0", "", "unknown"])
def test_runtimes_that_are_too_old(installed):
    with pytest.raises(UnsupportedBundleError):
        select_variant(index_of(a={}), msgspec.structs.replace(XEON, onnxruntime=installed))


def test_no_memory_stated_needs_none():
    (variant,) = read_variants(index_of(a={"budgets": Budgets()}))
    assert variant.memory_bytes is None
    assert misfit(variant, msgspec.structs.replace(XEON, memory_bytes=0)) is None


features = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6).map(sorted)


@given(st.lists(features, min_size=1, max_size=5), features, features)
def test_laws_of_the_ranking(wanted, has, more):
    index = index_of(
        any={"platform": AMD},
        **{f"v{n}": {"platform": AMD, "features": one} for n, one in enumerate(wanted)},
    )
    hardware = msgspec.structs.replace(XEON, features=has)
    best_first = select_variant(index, hardware)
    ranks = [(-len(one.features), one.position) for one in best_first]
    assert ranks == sorted(ranks)
    assert all(misfit(one, hardware) is None for one in best_first)
    better = msgspec.structs.replace(XEON, features=sorted({*has, *more}))
    assert {one.name for one in best_first} <= set(ranked(index, better))
