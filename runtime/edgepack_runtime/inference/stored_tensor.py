"""One tensor of a serialised graph: does it hold what its shape promises, and where does it lie?"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepack_contract.description import MODEL_DATA_PATH
from edgepack_runtime.inference.onnx_messages import BITS, STRING
from edgepack_runtime.inference.unfit import beyond_limit, malformed, outside

MAX_ELEMENTS = 2**40
MAX_PAIRS = 8
"""More than the three that there are, so that a refusal can name them."""


@dataclass(slots=True)
class StoredTensor:
    """The fields of a TensorProto, without its values.

    ``raw`` are the bytes of ``raw_data``, None when there is none; ``held`` those of all lists of
    numbers together; ``texts`` the number of strings. ``pairs`` say where its values lie when it
    ``is_outside``.
    """

    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: int | None = None
    held: int = 0
    texts: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    is_outside: bool = False


def add_pair(tensor: StoredTensor, pair: tuple[str, str]) -> None:
    """Add what a tensor says of where it lies.

    Raises:
        UnfitModelError: It has said more than there is to say.
    """
    if len(tensor.pairs) == MAX_PAIRS:
        raise outside(f"a tensor says more than {MAX_PAIRS} things of where it lies")
    tensor.pairs.append(pair)


def check_tensor(tensor: StoredTensor, *, may_be_outside: bool) -> tuple[int, int] | None:
    """Check a tensor.

    Returns:
        Offset and length in the file beside the graph, None for one that lies in the graph.

    Raises:
        UnfitModelError: It holds other than its shape promises, or lies where it may not.
    """
    elements = count_elements(tensor.dims)
    if not (tensor.is_outside or tensor.pairs):
        _check_held(tensor, elements)
        return None
    held = tensor.raw is not None or tensor.held or tensor.texts
    if not (tensor.is_outside and may_be_outside) or held:
        raise outside("a tensor that must lie in the file names one outside of it")
    return _external(tensor.pairs, _size(elements, tensor.kind))


def count_elements(dims: list[int]) -> int:
    """How many elements a shape has; within what 64 bits hold, so that no sum overflows later."""
    elements = 1
    for size in dims:
        if size < 0:
            raise malformed(f"a tensor has the shape {dims[:16]}")
        elements *= size
        if elements > MAX_ELEMENTS:
            raise beyond_limit(f"a tensor has the shape {dims[:16]}")
    return elements


def _size(elements: int, kind: int) -> int:
    if kind not in BITS:
        raise malformed(f"a tensor is of the unknown type {kind}")
    return (elements * BITS[kind] + 7) // 8


def _check_held(tensor: StoredTensor, elements: int) -> None:
    if tensor.kind == STRING:
        fits = tensor.texts == elements and tensor.raw is None
    elif tensor.raw is not None:
        fits = tensor.raw == _size(elements, tensor.kind)
    else:
        # packed numbers take a byte at least, which may hold several of the narrow types
        fits = _size(elements, tensor.kind) <= tensor.held * 8
    if not fits:
        raise malformed(
            f"a tensor of the shape {tensor.dims[:16]} holds other than that many values"
        )


def _external(pairs: list[tuple[str, str]], size: int) -> tuple[int, int]:
    """Offset and length of a tensor in the file beside the graph.

    Raises:
        UnfitModelError: It names another file, or says something else than where it lies there.
    """
    said = dict(pairs)
    if len(said) != len(pairs) or not said.keys() <= {"location", "offset", "length"}:
        raise outside(f"a tensor outside of the file says {sorted(said)[:8]!r} of itself")
    if said.get("location") != MODEL_DATA_PATH:
        raise outside(
            f"a tensor lies in {said.get('location', '')[:120]!r}, only {MODEL_DATA_PATH} may be "
            "beside the graph"
        )
    offset, length = said.get("offset", "0"), said.get("length", str(size))
    if not (_is_count(offset) and _is_count(length)) or int(length) != size:
        raise outside(
            f"a tensor of {size} bytes lies at {offset[:24]!r} with {length[:24]!r} bytes"
        )
    return int(offset), size


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
