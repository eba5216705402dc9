"""Open a model package with the installed onnxruntime, through its C interface and nothing else.

Run as a program: ``python ort_package.py FOLDER COMPONENT``; prints what it found as JSON. The
tables of functions only grow, so a place in one keeps its meaning. Source:
``onnxruntime_c_api.h`` of release 1.31, ``OrtApi`` and ``OrtModelPackageApi``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime

API_VERSION = 31
ERROR_MESSAGE, CREATE_ENV, CREATE_OPTIONS, INPUT_COUNT, MODEL_PACKAGES = 2, 3, 10, 30, 427
PACKAGE_OPTIONS, OPEN_PACKAGE, SELECT, SELECTED_NAME, CREATE_SESSION = 0, 2, 11, 13, 15

Table = ctypes.POINTER(ctypes.c_void_p)


class Base(ctypes.Structure):
    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(Table, ctypes.c_uint32)),
        ("get_version", ctypes.c_void_p),
    )


def table() -> Any:
    """The functions of the library that the Python package brings along."""
    (path,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*")
    library = ctypes.CDLL(str(path))
    library.OrtGetApiBase.restype = ctypes.POINTER(Base)
    return library.OrtGetApiBase().contents.get_api(API_VERSION)


def read(folder: str, component: str) -> dict[str, Any]:
    """The variant that onnxruntime chooses, and the number of inputs of the session it opens."""
    api = table()
    packages = ctypes.CFUNCTYPE(Table)(api[MODEL_PACKAGES])()

    def call(address: int, *arguments: Any) -> None:
        status = ctypes.CFUNCTYPE(ctypes.c_void_p)(address)(*arguments)
        if status:
            words = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(api[ERROR_MESSAGE])
            raise RuntimeError(words(status).decode())

    env, options, wanted, package, chosen, session = (ctypes.c_void_p() for _ in range(6))
    name, count = ctypes.c_char_p(), ctypes.c_size_t()
    by = ctypes.byref
    call(api[CREATE_ENV], ctypes.c_int(3), b"test", by(env))
    call(api[CREATE_OPTIONS], by(options))
    call(packages[PACKAGE_OPTIONS], env, options, by(wanted))
    call(packages[OPEN_PACKAGE], folder.encode(), by(package))
    call(packages[SELECT], package, component.encode(), wanted, by(chosen))
    call(packages[SELECTED_NAME], chosen, by(name))
    call(packages[CREATE_SESSION], env, chosen, None, by(session))
    call(api[INPUT_COUNT], session, by(count))
    return {"variant": (name.value or b"").decode(), "inputs": count.value}


if __name__ == "__main__":
    print(json.dumps(read(sys.argv[1], sys.argv[2])), flush=True)
    # what the C interface gave is left to the end of the process
    os._exit(0)
