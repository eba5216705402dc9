"""Names that follow memory: the same graph gets the same ones."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tests.packager.models import build, value

from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources.settling import settle_names


def graph(first, second, counter):
    """x * 2 + 2, with either of two equal constants, named and counted as a run happens to."""
    two = np.array([2.0], np.float32)
    constants = [numpy_helper.from_array(two, name) for name in sorted({first, second})]
    return build(
        [
            helper.make_node("Mul", ["x", first], [f"m__{counter}:0"], name=f"Mul__{counter}"),
            helper.make_node("Add", [f"m__{counter}:0", second], ["y__9"], name="Add"),
        ],
        [value("x", ["n", 3])],
        [value("y__9", ["n", 3])],
        constants,
    )


def test_the_same_graph_gets_the_same_names(tmp_path):
    one, two = graph("const__15", "const__15", 51), graph("const__13", "const__13", 53)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for place, model in enumerate((one, two)):
        settle_names(model.graph)
        onnx.checker.check_model(model)
        save_model(model, tmp_path / str(place))
        found = run_rows(open_folder(tmp_path / str(place)), {"x": x})
        assert found["y__9"].tolist() == (x * 2 + 2).tolist()
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_what_differs_stays_apart():
    model = graph("const__2", "const__1", 5)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.array([3.0], np.float32), "const__1")
    )
    settle_names(model.graph)
    values = {t.name: float(numpy_helper.to_array(t)[0]) for t in model.graph.initializer}
    assert values == {"constant_0": 2.0, "constant_1": 3.0}
    assert [list(node.input)[1] for node in model.graph.node] == ["constant_0", "constant_1"]
