"""Scoring a parquet file: ``edgepack predict`` beside pandas and scikit-learn, in one run.

    python bench/predict.py [--rows 1000000]

A logistic regression over 30 float32 features. Both are processes of their own, timed from their
start to their end; CPU seconds are those of the process, which do not grow when others work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import skops.io
from pyarrow import parquet as pa_parquet
from sklearn.linear_model import LogisticRegression

from edgepack_packager import Recipe, build

FEATURES = [f"f{place}" for place in range(30)]
PLAIN = """
import sys
import pandas as pd
import skops.io
rows = pd.read_parquet(sys.argv[2])
model = skops.io.load(sys.argv[1])
shares = model.predict_proba(rows.to_numpy())
found = pd.DataFrame(shares, columns=[f"probability_{one}" for one in model.classes_])
found.insert(0, "label", model.classes_[shares.argmax(axis=1)])
found.to_parquet(sys.argv[3])
"""


def main() -> None:
    """Make the rows and the model, run both, print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, model, rows = make(folder, count)
        print(f"{count:,} rows x {len(FEATURES)} float32 features, {os.cpu_count()} cores")
        print(f"{'':28}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}{'rows/s':>14}")
        ours = [
            sys.executable,
            "-m",
            "edgepack_cli",
            "predict",
            bundle,
            rows,
            "-o",
            folder / "a.parquet",
        ]
        theirs = [sys.executable, "-c", PLAIN, model, rows, folder / "b.parquet"]
        for title, command in (("edgepack predict", ours), ("pandas + scikit-learn", theirs)):
            show(title, command, count)
        compare(folder / "a.parquet", folder / "b.parquet")


def make(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """A bundle, the model inside it, and rows."""
    rng = np.random.default_rng(1)
    train = rng.normal(size=(3000, len(FEATURES))).astype(np.float32)
    labels = (train @ rng.normal(size=len(FEATURES)) > 0).astype(np.int64)
    skops.io.dump(LogisticRegression().fit(train, labels), folder / "model.skops")
    table = pa.table({name: train[:, place] for place, name in enumerate(FEATURES)})
    pa_parquet.write_table(table.append_column("y", pa.array(labels)), folder / "train.parquet")
    bundle = folder / "bench.edgepack"
    build(
        Recipe(model=folder / "model.skops", name="bench", version="1.0.0", output=bundle,
               data=folder / "train.parquet", label="y")
    )  # fmt: skip
    columns = {name: rng.normal(size=count).astype(np.float32) for name in FEATURES}
    pa_parquet.write_table(pa.table(columns), folder / "rows.parquet")
    return bundle, folder / "model.skops", folder / "rows.parquet"


def show(title: str, command: list[object], count: int) -> None:
    """Run one of the two and print its figures."""
    begun = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"{title} ended with {process.returncode}")
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"{title:28}{seconds:10.2f}{cpu:10.2f}{peak:10.0f}{count / seconds:14,.0f}")


def compare(one: Path, two: Path) -> None:
    """Say whether both gave the same answers."""
    ours, theirs = pa_parquet.read_table(one), pa_parquet.read_table(two)
    same = np.mean(ours.column("label").to_numpy() == theirs.column("label").to_numpy())
    gap = np.abs(
        ours.column("probability_1").to_numpy() - theirs.column("probability_1").to_numpy()
    )
    print(f"labels that agree: {same:.4%}; largest difference of a probability: {gap.max():.2g}")


if __name__ == "__main__":
    main()
