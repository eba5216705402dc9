"""What is no input of a model, on every way that a request can take: each has its code, none 500.

The ways are those of a head that is parsed, of one that was seen before, and uvicorn's own. What is
wrong with heads and connections is in ``test_hostile_clients.py``.
"""

from __future__ import annotations

import json
import struct

import pytest
from raw_line import Line
from tests.runtime.serving.conftest import World

from edgepack_contract.limits import LIMITS
from edgepack_runtime.serving import fast

FEATURES = ("temperature", "pressure", "flow", "age")
ROW = [0.5, -1.0, 2.0, 0.0]
V1, V2 = "/v1/models/pump:predict", "/v2/models/pump/infer"
ECHOES = ("int8", "uint64", "int64", "bool", "str")
WAYS = ("parsed", "seen before", "uvicorn")


def instances(text):
    return b'{"instances": %b}' % text.encode()


def row(value):
    """A row whose first number is written like this."""
    return instances(f"[[{value}, 0, 0, 0]]")


def infer(text="[0, 0, 0, 0]", **changes):
    """One tensor of 1 x 4, whose values are written like this."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"} | changes
    head = json.dumps(tensor)[:-1]
    return f'{{"inputs": [{head}, "data": {text}}}]}}'.encode()


def echo(dtype, datatype, text):
    """Where one value of a type goes, and the body."""
    body = infer(f"[{text}]", name=f"x_{dtype}", shape=[1, 1], datatype=datatype)
    return f"/v2/models/{dtype}/infer", body


ECHO = "/v2/models/int8/infer"
WIDE = {"name": "x_int8", "datatype": "INT8"}


def in_bytes(**changes):
    """Its values would lie behind the JSON, which takes the whole body."""
    tensor = WIDE | {"parameters": {"binary_data_size": 1}} | changes
    return json.dumps({"inputs": [tensor]}).encode()


BODIES = {
    # what a number may be
    "zero below zero": (V1, row("-0.0"), 200),
    "a denormal number": (V1, row("1e-45"), 200),
    "a number too small to be": (V1, row("1e-999"), 200),
    "not a number": (V1, row("NaN"), 400),
    "infinity": (V1, row("Infinity"), 400),
    "infinity below zero": (V2, infer("[-Infinity, 0, 0, 0]"), 400),
    "infinity by its size": (V1, row("1e999"), 400),
    "infinity by its type": (V1, row("1e39"), 400),
    "nothing": (V1, row("null"), 400),
    "a text": (V1, row('"1"'), 400),
    "truth": (V1, row("true"), 400),
    "an object": (V1, row("{}"), 400),
    "digits of Arabic": (V1, row("\u0661"), 400),
    "digits of Arabic as text": (V1, row('"\u0661"'), 400),
    "digits of full width": (V2, infer("[\uff11, 0, 0, 0]"), 400),
    "a hexadecimal number": (V1, row("0x10"), 400),
    "a leading zero": (V1, row("01"), 400),
    "a plus": (V1, row("+1"), 400),
    "a number of 5,000 digits": (V1, row("9" * 5000), 400),
    "a fraction of 5,000 digits": (V1, row("0." + "3" * 5000), 200),
    "an exponent of 5,000 digits": (V1, row("1e" + "9" * 5000), 400),
    # what fits its type
    "128 as int8": (*echo("int8", "INT8", "128"), 400),
    "-1 as uint64": (*echo("uint64", "UINT64", "-1"), 400),
    "2**64 as uint64": (*echo("uint64", "UINT64", str(2**64)), 400),
    "2**64 - 1 as uint64": (*echo("uint64", "UINT64", str(2**64 - 1)), 200),
    "-2**63 - 1 as int64": (*echo("int64", "INT64", str(-(2**63) - 1)), 400),
    "1.5 as int64": (*echo("int64", "INT64", "1.5"), 400),
    "2**70 as int64": (*echo("int64", "INT64", str(2**70)), 400),
    "2 as truth": (*echo("bool", "BOOL", "2"), 400),
    "half a character": (*echo("str", "BYTES", '"\\ud800"'), 400),
    "a null character": (*echo("str", "BYTES", '"a\\u0000b"'), 200),
    "base64 of no padding": (*echo("str", "BYTES", '{"b64": "YQ"}'), 400),
    "another type than the input's": (V2, infer(datatype="FP64"), 400),
    "a type that is none": (V2, infer(datatype="FP31"), 400),
    "a type that is a number": (V2, infer(datatype=1), 400),
    # shapes
    "too few": (V1, instances("[[1, 2, 3]]"), 400),
    "too many": (V1, instances("[[1, 2, 3, 4, 5]]"), 400),
    "ragged": (V1, instances("[[1, 2, 3, 4], [1]]"), 400),
    "another rank": (V1, instances("[[[1, 2, 3, 4]]]"), 400),
    "a number alone": (V1, instances("5"), 400),
    "no rows": (V1, instances("[]"), 400),
    "a rank of one": (V2, infer(shape=[4]), 400),
    "a negative size": (V2, infer(shape=[-1, 4]), 400),
    "an enormous size": (V2, infer(shape=[2**62, 4]), 400),
    "a size beyond 64 bits": (V2, infer(shape=[2**70, 4]), 400),
    "a size of 4,300 digits": (V2, infer(shape=[10**4299, 4]), 400),
    "sizes whose product has 6,000 digits": (ECHO, infer(**WIDE, shape=[10**3000] * 2), 400),
    "sizes of 6,000 digits in bytes": (ECHO, in_bytes(shape=[10**3000] * 2), 400),
    "sizes that overflow in bytes": (ECHO, in_bytes(shape=[2**32, 2**32]), 400),
    "a size that is no integer": (V2, infer(shape=[1.5, 4]), 400),
    "a size that is a text": (V2, infer(shape=["1", 4]), 400),
    "100,000 sizes": (V2, infer(shape=[1] * 100_000), 400),
    "fewer values than the shape": (V2, infer("[0]"), 400),
    "a hundred thousand zeros": (V1, instances(f"[[{'0,' * 100_000}0]]"), 400),
    # names
    "an input more": (V2, infer()[:-2] + b"," + infer(name="y")[12:], 400),
    "an input twice": (V2, infer()[:-2] + b"," + infer()[12:], 400),
    "another input": (V2, infer(name="y"), 400),
    "no input": (V2, b'{"inputs": []}', 400),
    "a feature more": (V1, instances(json.dumps([dict.fromkeys([*FEATURES, "x"], 1)])), 400),
    "an output that is none": (V2, infer()[:-1] + b', "outputs": [{"name": "z"}]}', 400),
    # the text of it
    "a key twice, the last counts": (V1, b'{"instances": 1, "instances": [[0, 0, 0, 0]]}', 200),
    "an unknown key": (V1, b'{"instances": [[0, 0, 0, 0]], "x": 1}', 200),
    "nested 100,000 deep": (V1, instances("[" * 100_000), 400),
    "nested 100,000 deep and closed": (V2, infer("[" * 100_000 + "]" * 100_000), 400),
    "nested deep where nobody looks": (
        V1, b'{"x": %b%b, "instances": [[0, 0, 0, 0]]}' % (b"[" * 100_000, b"]" * 100_000), 400,
    ),
    "half": (V1, b'{"instances": [[0, 0', 400),
    "more behind it": (V1, row("0") + b"{}", 400),
    "not UTF-8": (V1, row('"?"').replace(b"?", b"\xff"), 400),
    "not UTF-8 where nobody looks": (V1, row("0")[:-1] + b', "\xff": 1}', 200),
    "UTF-16": (V1, row("0").decode().encode("utf-16"), 400),
    "a mark of byte order": (V1, b"\xef\xbb\xbf" + row("0"), 400),
    "null": (V1, b"null", 400),
    "a list": (V2, b"[]", 400),
    "null bytes": (V1, bytes(100), 400),
    "markup": (V1, b"<script>alert(1)</script>", 400),
    "more JSON than may be": (V1, instances(f"[[{'0,' * 10_000_000}0]]"), 413),
}  # fmt: skip
"""Where it goes, the body, and the code of its answer."""

BINARY = {
    "digits that are no ASCII": (b"\xb2", 400),
    "digits of Arabic": ("\u0661".encode(), 400),
    "a negative length": (b"-1", 400),
    "a length of 5,000 digits": (b"0" * 5000, 400),
    "a length beyond the body": (b"999", 400),
    "a length with a plus": (b"+0", 400),
    "a length with an underscore": (b"1_6", 400),
    "no length": (b"", 400),
}
"""Values of ``inference-header-content-length``."""


@pytest.fixture(scope="module", params=WAYS)
def way(request, load, load_echo):
    """A way, and the port where requests go it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "uvicorn":
            patch.setattr(fast.Front, "route", lambda _self, _target: None)
        world = World()
        try:
            world.add("pump", load("bodies"))
            for dtype in ECHOES:
                world.add(dtype, load_echo(dtype))
            world.start()
            yield request.param, world
        finally:
            world.close()


def post(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: d", b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


GOOD = post(V1, row("0"))


def told(way, raw):
    """What a request is answered, after which the next one is answered as ever."""
    name, world = way
    line = Line(world.server.port)
    try:
        for _ in range(3 if name == "seen before" and len(raw) < 2**20 else 1):
            line.send(raw)
            status, headers, body = line.answer()
            if headers.get(b"connection") == b"close":
                break
        if headers.get(b"connection") == b"close":
            line.close()
            line = Line(world.server.port)
        line.send(GOOD)
        assert line.answer()[0].startswith(b"HTTP/1.1 200")
        return int(status.split()[1]), body
    finally:
        line.close()


def check(way, raw, expected):
    status, body = told(way, raw)
    assert status == expected, body[:500]
    if status != 200:
        words = json.loads(body)["error"]
        assert 0 < len(words) < 2000
        assert "Traceback" not in words
    world = way[1]
    assert world.call(lambda: world.slots["pump"].in_flight) == 0


@pytest.mark.parametrize("case", BODIES)
def test_each_body_has_its_code(way, case):
    path, body, expected = BODIES[case]
    behind = b'"binary_data_size"' in body
    length = [b"inference-header-content-length: %d" % len(body)] if behind else []
    check(way, post(path, body + b"\0" * behind, *length), expected)


@pytest.mark.parametrize("case", BINARY)
def test_lengths_of_headers_that_are_none(way, case):
    said, expected = BINARY[case]
    body = struct.pack("<4f", *ROW)
    check(way, post(V2, body, b"inference-header-content-length: " + said), expected)


@pytest.mark.parametrize("zeros", [1, 4000, 5000])
def test_a_length_with_many_zeros_is_a_length_or_refused(way, zeros):
    raw = GOOD.replace(b"content-length: ", b"content-length: " + b"0" * zeros)
    status, body = told(way, raw)
    assert status == (200 if zeros < 4300 else 400), body


def test_what_is_said_of_a_body_is_bounded(way):
    """Names and values of a stranger come back in the words, but not all of them."""
    long = "<b>" * 100_000
    told_by = '], "id": ' + json.dumps(long) + "}"
    for path, body in (
        (V2, infer(name=long)),
        (V2, infer(datatype=long)),
        (V2, infer(shape=[7] * 100_000)),
        (V2, infer()[:-2] + told_by.encode()),
        (V1, row(json.dumps(long))),
        (V1, instances(json.dumps([{long: 1}]))),
    ):
        status, answer = told(way, post(path, body))
        assert status in (200, 400)
        assert status == 200 or len(answer) < 4000, answer[:200]


def test_the_limit_of_json_is_below_that_of_a_body():
    assert LIMITS.request_json_bytes < len(BODIES["more JSON than may be"][1])
    assert len(BODIES["more JSON than may be"][1]) < LIMITS.request_body_bytes
