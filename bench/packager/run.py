"""edgepack's search beside onnxruntime's own quantization, on real models and data, in one run.

    python bench/packager/run.py [--only NAME] [--magika FOLDER] [--write docs/benchmarks.md]

Every file is judged on the same rows and timed in turns on one thread: medians of single rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from baselines import Feeds, default_dynamic, default_static, first_rows, plain_onnx
from cases import CASES, Case
from datasets import CACHE

ROUNDS = 7
RUNS = 60
BEGIN, END = "<!-- begin: bench/packager -->", "<!-- end: bench/packager -->"


@dataclass(frozen=True)
class Entry:
    """One model file of a case: what it is, its figure, size and time against plain fp32."""

    case: str
    tool: str
    words: str
    figure: str
    n: int
    size: float | None
    speed: float | None


def main() -> None:
    """Run the cases and print, or write, the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--magika", type=Path, help="A folder with model.onnx and make_rows.py.")
    parser.add_argument("--write", type=Path, help="A page whose table is replaced.")
    arguments = parser.parse_args()
    cases = [case for case in (*CASES, *_magika(arguments.magika)) if _wanted(case, arguments.only)]
    entries = [entry for case in cases for entry in run(case)]
    table = render(entries)
    print(table)
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


def run(case: Case) -> list[Entry]:
    """Build with edgepack and with the defaults, then judge and time all files side by side."""
    source = case.folder()
    with TemporaryDirectory() as name:
        work = Path(name)
        label = case.label
        evaluation = source / ("evaluation.npz" if label else "data.npz")
        calibration = source / ("calibration.npz" if label else "data.npz")
        rows = first_rows(evaluation, label=label, most=10_000)
        plain_onnx(
            source / case.model,
            {name: values[:16] for name, values in rows.items()},
            work / "fp32.onnx",
        )
        built, seconds = edgepack(case, source, work)
        session = _open(work / "fp32.onnx")
        feeds = _bound(session, rows)
        calibrate = _bound(session, first_rows(calibration, label=label, most=128))
        failures = {
            "static": default_static(work / "fp32.onnx", calibrate, work / "static.onnx"),
            "dynamic": default_dynamic(work / "fp32.onnx", work / "dynamic.onnx"),
        }
        files = {"fp32": work / "fp32.onnx", "edgepack": next((work / "tree").glob("*/model.onnx"))}
        files |= {tool: work / f"{tool}.onnx" for tool, why in failures.items() if not why}
        return _entries(case, built, seconds, files, feeds, _truth(evaluation, label), failures)


def edgepack(case: Case, source: Path, work: Path) -> tuple[dict[str, Any], float]:
    """The chosen candidate as the report has it, and the seconds that the command took."""
    data = (
        [
            "--calibration",
            "calibration.npz",
            "--eval",
            "evaluation.npz",
            "--reference",
            "reference.npz",
        ]
        if case.label
        else ["--data", "data.npz"]
    )
    command = [str(Path(sys.executable).with_name("edgepack"))]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "build", case.model, "--name", case.name, "--version", "1.0.0", *data,
         *(["--label", case.label] if case.label else []), *case.options,
         "--json", "-o", str(work / "case.edgepack")],
        cwd=source, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    subprocess.run(
        [*command, "unpack", str(work / "case.edgepack"), str(work / "tree")],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    target = json.loads(done.stdout)["report"]["targets"][0]
    return next(item for item in target["candidates"] if item["chosen"]), seconds


def _entries(
    case: Case,
    built: dict[str, Any],
    seconds: float,
    files: dict[str, Path],
    feeds: Feeds,
    truth: npt.NDArray[Any] | None,
    failures: dict[str, str],
) -> list[Entry]:
    sessions = {tool: _open(path) for tool, path in files.items()}
    answers = {tool: _answers(session, feeds) for tool, session in sessions.items()}
    times = time_in_turns(list(sessions.values()), feeds)
    took = dict(zip(sessions, times, strict=True))
    n = len(next(iter(feeds.values())))
    words = {
        "fp32": "as exported",
        "edgepack": f"{built['name']}, {seconds:.0f} s; {_bound_words(built)}",
    }
    made = [
        Entry(
            case.name, tool, words.get(tool, ""), _figure(answers[tool], answers["fp32"], truth), n,
            _size(path) / _size(files["fp32"]), took["fp32"] / took[tool],
        )
        for tool, path in files.items()
    ]  # fmt: skip
    return made + [
        Entry(case.name, tool, why, "fails", n, None, None) for tool, why in failures.items() if why
    ]


def time_in_turns(sessions: Sequence[ort.InferenceSession], feeds: Feeds) -> list[float]:
    """The median seconds of one row per session; rounds alternate, so that noise meets all."""
    names = [{item.name for item in session.get_inputs()} for session in sessions]
    rounds: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for place, session in enumerate(sessions):
            runs = []
            for row in range(RUNS):
                one = {name: feeds[name][row : row + 1] for name in names[place]}
                begun = time.perf_counter()
                session.run(None, one)
                runs.append(time.perf_counter() - begun)
            rounds[place].append(statistics.median(runs))
    return [statistics.median(found) for found in rounds]


def render(entries: Sequence[Entry]) -> str:
    """The table in Markdown."""
    lines = ["| model | tool | result | n | size | speed | |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {entry.case} | {_TOOLS[entry.tool]} | {entry.figure} | {entry.n:,} "
        f"| {_ratio(entry.size)} | {_ratio(entry.speed)} | {entry.words} |"
        for entry in entries
    ]
    return "\n".join(lines)


_TOOLS = {
    "fp32": "plain ONNX",
    "edgepack": "**edgepack build**",
    "static": "`quantize_static`",
    "dynamic": "`quantize_dynamic`",
}


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _figure(
    answers: npt.NDArray[Any], plain: npt.NDArray[Any], truth: npt.NDArray[Any] | None
) -> str:
    if answers.dtype.kind == "f" and truth is not None:
        return f"RMSE {float(np.sqrt(np.mean((answers - truth) ** 2))):.4f}"
    agreement = f"{float(np.mean(answers == plain)):.2%} agree"
    return (
        agreement
        if truth is None
        else f"accuracy {float(np.mean(answers == truth)):.2%}, {agreement}"
    )


def _bound_words(built: dict[str, Any]) -> str:
    return next((gate["words"] for gate in built["gates"] if gate["gate"] == "max-drop"), "")


def _answers(session: ort.InferenceSession, feeds: Feeds) -> npt.NDArray[Any]:
    names = [item.name for item in session.get_inputs()]
    n = len(next(iter(feeds.values())))
    runs = [
        session.run(None, {name: feeds[name][place : place + 1] for name in names})[0]
        for place in range(n)
    ]
    values = np.concatenate([np.atleast_1d(run) for run in runs])
    if values.dtype.kind != "f":
        return values.reshape(n)
    return values.reshape(n) if values.size == n else values.reshape(n, -1).argmax(axis=1)


def _truth(path: Path, label: str | None) -> npt.NDArray[Any] | None:
    if label is None:
        return None
    with np.load(path, allow_pickle=False) as archive:
        return archive[label][:10_000]


def _bound(session: ort.InferenceSession, rows: Feeds) -> Feeds:
    inputs = session.get_inputs()
    if len(inputs) == 1:
        return {inputs[0].name: next(iter(rows.values()))}
    return {item.name: rows[item.name] for item in inputs}


def _open(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _size(path: Path) -> int:
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _wanted(case: Case, only: Sequence[str]) -> bool:
    return not only or case.name in only


def _magika(folder: Path | None) -> tuple[Case, ...]:
    if folder is None or not (folder / "model.onnx").exists():
        print(f"magika is skipped: no model.onnx in {folder}", file=sys.stderr)
        return ()

    def files(place: Path) -> None:
        (place / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
        rows = [place / "data.npz", "3000", "/usr/share", "/usr/lib", "/usr/bin", "/etc"]
        subprocess.run([sys.executable, folder / "make_rows.py", *rows], check=True)

    return (Case("magika", "model.onnx", files, None),)


if __name__ == "__main__":
    CACHE.mkdir(exist_ok=True)
    main()
