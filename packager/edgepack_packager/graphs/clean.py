"""Passes that make any ONNX graph one that the runtime loads fast, and whose bytes repeat."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper
from onnx.defs import SchemaError

from edgepack_packager.graphs.passes import GraphPass
from edgepack_packager.graphs.releases import NEWEST
from edgepack_packager.graphs.subgraphs import inline_branches

MIN_OPSET = 13
"""Per-channel quantization needs it, and every operator before it has a successor there."""

TARGET_OPSET = 17
MAX_OPSET = NEWEST.opset
"""The newest opset of ai.onnx that onnxruntime 1.31 reads."""

MIN_IR = 8
MAX_IR = NEWEST.ir
"""onnxruntime 1.31 reads no newer file format, although today's onnx writes 14 by default."""

BATCH = "batch"
MOST_LETTERS = 64
_NOT_PLAIN = re.compile(r"[^!-~]")

_ONNX_DOMAINS = frozenset({"", "ai.onnx"})


def loading_passes() -> tuple[GraphPass, ...]:
    """The least that lets the runtime load a graph as it came."""
    return (
        GraphPass("merge-opsets", merge_opsets),
        GraphPass("remove-zipmap", remove_zipmap),
        GraphPass("lowest-ir", lowest_ir),
    )


def clean_passes() -> tuple[GraphPass, ...]:
    """The passes, in order."""
    return (
        GraphPass("merge-opsets", merge_opsets, ensures=_one_version_each),
        GraphPass("remove-zipmap", remove_zipmap, ensures=_no_zipmap),
        GraphPass("unlist-initializers", unlist_initializers, ensures=_no_listed_initializer),
        GraphPass("inline-branches", inline_branches),
        GraphPass("strip-metadata", strip_metadata),
        GraphPass("name-nodes", name_nodes, ensures=_unique_node_names),
        GraphPass("name-batch", name_batch),
        GraphPass("name-lengths", name_lengths),
        GraphPass("lowest-opset", lowest_opset, ensures=_known_opset),
        GraphPass("lowest-ir", lowest_ir, ensures=_readable_ir),
    )


def merge_opsets(model: onnx.ModelProto) -> bool:
    """Import each domain once: skl2onnx repeats some, and the quantizer then finds none."""
    wanted = {
        "" if entry.domain in _ONNX_DOMAINS else entry.domain: entry.version
        for entry in sorted(model.opset_import, key=lambda entry: entry.version)
    }
    used = {"" if node.domain in _ONNX_DOMAINS else node.domain for node in all_nodes(model.graph)}
    merged = {domain: version for domain, version in sorted(wanted.items()) if domain in used}
    before = [(entry.domain, entry.version) for entry in model.opset_import]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in merged.items())
    return bool(before != list(merged.items()))


def remove_zipmap(model: onnx.ModelProto) -> bool:
    """Give the scores as a tensor instead of as a sequence of maps."""
    zipmaps = [node for node in model.graph.node if node.op_type == "ZipMap"]
    for node in zipmaps:
        model.graph.node.remove(node)
        output = next(item for item in model.graph.output if item.name == node.output[0])
        if node.input[0] in {item.name for item in model.graph.output}:
            model.graph.output.remove(output)  # the tensor is given already
            continue
        rename_value(model.graph, node.input[0], node.output[0])
        classes = next((len(a.ints) or len(a.strings) for a in node.attribute), None)
        shape = [None, classes]
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    return bool(zipmaps)


def unlist_initializers(model: onnx.ModelProto) -> bool:
    """Leave weights to the list of weights alone.

    Among the inputs they could be overridden and so are not folded; a shape stated elsewhere, as
    PyTorch writes them, is wrong after a tool has transposed the weight.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    before = len(model.graph.input) + len(model.graph.value_info)
    for items in (model.graph.input, model.graph.value_info):
        for item in [item for item in items if item.name in weights]:
            items.remove(item)
    return bool(before != len(model.graph.input) + len(model.graph.value_info))


def strip_metadata(model: onnx.ModelProto) -> bool:
    """Remove what says who, where and when: it would change the digest and nothing else."""
    before = model.ByteSize()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        model.ClearField(field)
    del model.metadata_props[:]
    graph = model.graph
    graph.ClearField("doc_string")
    graph.name = "model"
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("doc_string")
        del item.metadata_props[:]
    for node in all_nodes(graph):
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return bool(before != model.ByteSize())


def name_nodes(model: onnx.ModelProto) -> bool:
    """Give every node a name of its own, by which it can be kept out of quantization."""
    seen: set[str] = set()
    changed = False
    for position, node in enumerate(all_nodes(model.graph)):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}-{position}"
            changed = True
        seen.add(node.name)
    return changed


def name_batch(model: onnx.ModelProto) -> bool:
    """Call the open first dimension of inputs and outputs by one name."""
    changed = False
    for item in (*model.graph.input, *model.graph.output):
        sizes = item.type.tensor_type.shape.dim
        if not sizes or sizes[0].HasField("dim_value") or sizes[0].dim_param == BATCH:
            continue
        sizes[0].dim_param = BATCH
        changed = True
    return changed


def name_lengths(model: onnx.ModelProto) -> bool:
    """Name the open dimensions of inputs that have no name, and spell all so that a bundle may."""
    changed = False
    for item in model.graph.input:
        for place, size in enumerate(item.type.tensor_type.shape.dim):
            if not size.HasField("dim_value") and not size.dim_param:
                size.dim_param = f"{item.name}-{place}"
                changed = True
    for item in (*model.graph.input, *model.graph.output):
        for size in item.type.tensor_type.shape.dim:
            plain = _NOT_PLAIN.sub("_", size.dim_param)[:MOST_LETTERS]
            if plain != size.dim_param:
                size.dim_param = plain
                changed = True
    return changed


def lowest_opset(model: onnx.ModelProto) -> bool:
    """Import the lowest opset in which every operator means the same.

    An operator's meaning is that of the last version before the imported one, so that importing
    the highest of those versions changes nothing.
    """
    imports = {entry.domain: entry for entry in model.opset_import}
    before = {domain: entry.version for domain, entry in imports.items()}
    needed: dict[str, int] = {}
    for node in all_nodes(model.graph):
        domain = "" if node.domain in _ONNX_DOMAINS else node.domain
        try:
            since = onnx.defs.get_schema(node.op_type, before[domain], domain).since_version
        except SchemaError:
            since = before[domain]
        needed[domain] = max(needed.get(domain, 1), since)
    for domain, entry in imports.items():
        least = MIN_OPSET if domain == "" else 1
        entry.version = min(before[domain], max(needed.get(domain, least), least))
    return any(entry.version != before[domain] for domain, entry in imports.items())


def lowest_ir(model: onnx.ModelProto) -> bool:
    """Write the lowest file format version that has the imported opsets."""
    before = model.ir_version
    wanted = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(MIN_IR, wanted)
    return bool(before != model.ir_version)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, with those of sub-graphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from all_nodes(inner)


def operators(model: onnx.ModelProto) -> list[str]:
    """``domain:operator`` of everything used, sorted."""
    nodes = all_nodes(model.graph)
    return sorted({f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in nodes})


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """The imported version by domain, with ONNX's own domain spelt out."""
    return {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}


def serialise(model: onnx.ModelProto) -> bytes:
    """Bytes that are the same for the same graph."""
    return bytes(model.SerializeToString(deterministic=True))


def fix_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a first dimension of 1, for graphs that only claim to take more rows."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for item in (*fixed.graph.input, *fixed.graph.output):
        sizes = item.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = 1
    del fixed.graph.value_info[:]
    return fixed


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The graph in an opset that can be quantized; None when it is, or has no such form.

    The converter lacks adapters for some operators. The caller compares answers and otherwise
    keeps the graph it has.
    """
    if opsets(model).get("ai.onnx", TARGET_OPSET) >= MIN_OPSET:
        return None
    try:
        return onnx.version_converter.convert_version(model, TARGET_OPSET)
    except (RuntimeError, ValueError):
        return None


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor inside a graph; its inputs and outputs keep their names."""
    for node in all_nodes(graph):
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
    for item in graph.value_info:
        if item.name == old:
            item.name = new


def _one_version_each(model: onnx.ModelProto) -> str:
    domains = [entry.domain for entry in model.opset_import]
    return "" if len(set(domains)) == len(domains) else f"domains are imported twice: {domains}"


def _no_zipmap(model: onnx.ModelProto) -> str:
    left = any(node.op_type == "ZipMap" for node in all_nodes(model.graph))
    return "a ZipMap in a sub-graph cannot be removed" if left else ""


def _no_listed_initializer(model: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in model.graph.initializer}
    listed = sorted(weights & {item.name for item in model.graph.input})
    return f"weights are still inputs: {listed}" if listed else ""


def _unique_node_names(model: onnx.ModelProto) -> str:
    names = [node.name for node in all_nodes(model.graph)]
    return "" if all(names) and len(set(names)) == len(names) else "two nodes have the same name"


def _known_opset(model: onnx.ModelProto) -> str:
    version = opsets(model).get("ai.onnx", TARGET_OPSET)
    if version <= MAX_OPSET:
        return ""
    return f"opset {version} is newer than {MAX_OPSET}, the newest that the runtime reads"


def _readable_ir(model: onnx.ModelProto) -> str:
    if model.ir_version <= MAX_IR:
        return ""
    return f"file format {model.ir_version} is newer than {MAX_IR}, the newest the runtime reads"
