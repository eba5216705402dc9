"""The models of the benchmark: trained here once on real data, and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skops.io
import torch
from datasets import CACHE, flights, mnist, weather
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from torch import nn

HOURS = 24
CALIBRATION = 512
REFERENCE = 2000


@dataclass(frozen=True)
class Case:
    """A model, what it is judged on, and the options that a user would give.

    ``files`` makes the model and ``calibration.npz``, ``evaluation.npz``, ``reference.npz`` or
    ``data.npz`` in a folder; ``label`` is the array with the truth.
    """

    name: str
    model: str
    files: Callable[[Path], None]
    label: str | None
    options: tuple[str, ...] = ()

    def folder(self) -> Path:
        """The folder with the files, which are made when they are not there."""
        folder = CACHE / self.name
        if not (folder / "ready").exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.files(folder)
            (folder / "ready").touch()
        return folder


class Convolutional(nn.Module):
    """Two convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """From (n, 1, 28, 28) to scores (n, 10)."""
        return self.layers(pixels)


class Encoder(nn.Module):
    """A transformer encoder whose tokens are the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 128)
        self.place = nn.Parameter(torch.randn(1, 28, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """From (n, 1, 28, 28) to scores (n, 10)."""
        tokens = self.embed(pixels.flatten(1, 2)) + self.place
        return self.head(self.encoder(tokens).mean(dim=1))


class Forecast(nn.Module):
    """An LSTM over the last hours, and the next temperature."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(columns, 96, batch_first=True)
        self.head = nn.Linear(96, 1)

    def forward(self, hours: torch.Tensor) -> torch.Tensor:
        """From (n, hours, columns) to (n, 1)."""
        return self.head(self.lstm(hours)[0][:, -1])


def make_cnn(folder: Path) -> None:
    """The convolutional network on MNIST."""
    _image_network(folder, Convolutional(), epochs=2)


def make_transformer(folder: Path) -> None:
    """The encoder on MNIST."""
    _image_network(folder, Encoder(), epochs=3)


def make_mlp(folder: Path) -> None:
    """scikit-learn's multi-layer perceptron on MNIST."""
    pixels, digits, trained = mnist()
    flat = pixels.reshape(len(pixels), -1)
    model = MLPClassifier((128, 64), max_iter=12, random_state=0, early_stopping=True)
    model.fit(flat[:trained], digits[:trained])
    skops.io.dump(model, folder / "model.skops")
    _parts(folder, trained, pixels=flat, label=digits)


def make_forest(folder: Path) -> None:
    """A random forest on departures."""
    _flight_model(folder, RandomForestClassifier(100, max_depth=12, random_state=0, n_jobs=2))


def make_boosting(folder: Path) -> None:
    """LightGBM's gradient boosting on departures, from its own file."""
    import lightgbm  # noqa: PLC0415

    model = lightgbm.LGBMClassifier(n_estimators=200, random_state=0, verbose=-1)
    # a lambda, because an untrained model has no booster
    _flight_model(folder, model, save=lambda path: model.booster_.save_model(path))  # noqa: PLW0108


def make_lstm(folder: Path) -> None:
    """The forecast of the next hour's temperature from the last day."""
    torch.manual_seed(0)
    hours, following, trained = _days()
    model = Forecast(hours.shape[-1])
    _train(model, hours[:trained], following[:trained], nn.MSELoss(), epochs=6)
    _export(model, torch.from_numpy(hours[:2]), folder / "model.pt2")
    _parts(folder, trained, hours=hours, label=following[:, 0])


def _days() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
    windows, following = [], []
    for _, airport in weather().groupby("origin"):
        values = airport.drop(columns="origin").to_numpy(np.float32)
        values = (values - values.mean(axis=0)) / values.std(axis=0)
        windows.append(np.lib.stride_tricks.sliding_window_view(values, HOURS, axis=0)[:-1])
        following.append(values[HOURS:, :1])
    hours = np.ascontiguousarray(np.concatenate(windows).transpose(0, 2, 1))
    order = np.random.default_rng(0).permutation(len(hours))
    return hours[order], np.concatenate(following)[order], int(len(hours) * 0.6)


def _flight_model(
    folder: Path, model: object, save: Callable[[Path], object] | None = None
) -> None:
    frame = flights()
    rows = frame.drop(columns="late").to_numpy(np.float32)
    late = frame["late"].to_numpy()
    order = np.random.default_rng(0).permutation(len(rows))[:60_000]
    rows, late, trained = rows[order], late[order], 40_000
    model.fit(rows[:trained], late[:trained])  # type: ignore[attr-defined]
    if save is None:
        skops.io.dump(model, folder / "model.skops")
    else:
        save(folder / "model.txt")
    _parts(folder, trained, departures=rows, label=late)


def _image_network(folder: Path, model: nn.Module, *, epochs: int) -> None:
    torch.manual_seed(0)
    pixels, digits, trained = mnist()
    _train(model, pixels[:trained], digits[:trained], nn.CrossEntropyLoss(), epochs=epochs)
    _export(model, torch.from_numpy(pixels[:2]), folder / "model.pt2")
    _parts(folder, trained, pixels=pixels, label=digits)


def _train(
    model: nn.Module,
    rows: npt.NDArray[np.float32],
    truth: npt.NDArray[np.generic],
    loss: nn.Module,
    *,
    epochs: int,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(128):
            optimizer.zero_grad()
            error = loss(model(torch.from_numpy(rows[batch])), torch.from_numpy(truth[batch]))
            error.backward()
            optimizer.step()
    model.eval()


def _export(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    shape = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shape), path)


def _parts(folder: Path, trained: int, **arrays: npt.NDArray[np.generic]) -> None:
    """Calibration and reference from the rows that it learnt from, evaluation from others."""
    cuts = {
        "calibration": slice(0, CALIBRATION),
        "reference": slice(CALIBRATION, CALIBRATION + REFERENCE),
        "evaluation": slice(trained, trained + 10_000),
    }
    for name, rows in cuts.items():
        np.savez(folder / f"{name}.npz", **{key: array[rows] for key, array in arrays.items()})


CASES = (
    Case("digits-cnn", "model.pt2", make_cnn, "label", ("--trust-pickle",)),
    Case("digits-mlp", "model.skops", make_mlp, "label"),
    Case("flights-forest", "model.skops", make_forest, "label"),
    Case("flights-boosting", "model.txt", make_boosting, "label"),
    Case("weather-lstm", "model.pt2", make_lstm, "label", ("--trust-pickle",)),
    Case("digits-transformer", "model.pt2", make_transformer, "label", ("--trust-pickle",)),
)
