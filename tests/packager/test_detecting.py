"""What is detected on a machine is that machine."""

from __future__ import annotations

import pytest

from edgepack_contract.hardware import Hardware
from edgepack_packager.detecting import detect_target, to_toml
from edgepack_packager.errors import RecipeError
from edgepack_packager.targets import load_target, parse_target, this_hardware

PI = Hardware(
    os="linux", architecture="arm64", variant="v8", features=["asimd", "asimddp", "asimdhp"],
    cores=4, memory_bytes=8 * 2**30, model='Raspberry Pi 5 "B" Rev 1.0 é', onnxruntime="1.31.1",
)  # fmt: skip


@pytest.mark.parametrize("board", [True, False])
@pytest.mark.parametrize("machine", [PI, this_hardware()], ids=["pi", "here"])
def test_what_is_written_is_read_and_is_the_machine(machine, board):
    made = detect_target(machine, name="mine", board=board)
    read = parse_target(to_toml(made).encode(), name="mine")
    assert read == made
    assert read.is_this(machine)
    assert read.provenance.status == "not run"


def test_a_board_is_known_by_its_model_and_others_by_their_features():
    board = detect_target(PI, name=None, board=True)
    assert (board.name, board.kind, board.model) == ("raspberry-pi-5-b-rev-1-0", "board", PI.model)
    assert board.precision[0] == "int8-static"
    assert not board.is_this(this_hardware())
    assert detect_target(PI, name=None, board=False).model is None


def test_a_name_must_be_an_id():
    with pytest.raises(RecipeError, match="cannot be the name"):
        detect_target(PI, name="My Board", board=True)


def test_a_target_of_ones_own_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(detect_target(PI, name="mine", board=True)))
    assert load_target(str(path)).name == "mine"
    path.rename(tmp_path / "yours.toml")
    with pytest.raises(RecipeError, match="the file's name"):
        load_target(str(tmp_path / "yours.toml"))
    with pytest.raises(RecipeError, match="cannot read"):
        load_target(str(path))
