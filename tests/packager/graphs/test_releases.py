"""What releases of the runtime read, and what the one that is installed really does."""

import pytest
from tests.packager.models import mlp, rows

from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.releases import (
    NEWEST,
    Readable,
    check_readable,
    readable,
    unreadable,
)
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.inference.session import onnxruntime_version


@pytest.mark.parametrize(("release", "limit"), [
    ("1.10.0", Readable(7, 15)),
    ("1.17.1", Readable(9, 20)),
    ("1.20.1", Readable(10, 21)),
    ("1.25.0", Readable(11, 23)),
    ("1.31.1", Readable(13, 26)),
    ("2.0.0", NEWEST),
])  # fmt: skip
def test_a_release_reads_what_the_last_known_one_reads(release, limit):
    assert readable(release) == limit


def test_later_releases_read_no_less():
    known = [readable(f"1.{minor}.0") for minor in range(10, 40)]
    assert known == sorted(known)
    assert [item.opset for item in known] == sorted(item.opset for item in known)


def test_what_is_too_new_is_said_with_a_way_out():
    assert unreadable(mlp(opsets={"": 17}, ir=8), "1.14.0") == ""
    words = unreadable(mlp(opsets={"": 21}, ir=8), "1.17.0")
    assert "opset 21" in words
    assert "1.17.0 reads 20" in words
    assert "file format 10" in unreadable(mlp(opsets={"": 17}, ir=10), "1.17.0")


def test_a_target_that_cannot_load_a_model_is_refused():
    check_readable(mlp(opsets={"": 17}, ir=8), "1.14.0", "old-board")
    with pytest.raises(ConversionError, match="target old-board cannot load") as caught:
        check_readable(mlp(opsets={"": 21}, ir=8), "1.14.0", "old-board")
    assert caught.value.code == "too-new-for-target"


def test_the_table_is_true_of_the_installed_runtime(tmp_path):
    limit = readable(onnxruntime_version())
    save_model(mlp(opsets={"": limit.opset}, ir=limit.ir), tmp_path / "newest")
    assert open_folder(tmp_path / "newest").run({"x": rows(n=1)})
    save_model(mlp(opsets={"": 17}, ir=limit.ir + 1), tmp_path / "newer")
    with pytest.raises(ModelLoadError):
        open_folder(tmp_path / "newer")
