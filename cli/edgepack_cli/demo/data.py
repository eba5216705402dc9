"""The demo's data and models: scikit-learn's bundled digits, half to train on, half for devices.

Labels of the devices' half stay with the demo's clients; neither a device nor the fleet sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PIXEL_MAX = 16.0
BAD_PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Rows of 64 pixels scaled to 0..1, float32, and their digits."""

    train_rows: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    device_rows: npt.NDArray[np.float32]
    device_labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Release:
    """One version to build: its model file, the data file, and whether that has labels."""

    version: str
    model: Path
    data: Path
    labelled: bool
    words: str


def load_digits_halves(seed: int) -> Digits:
    """The 1,797 digits in two halves, each with the same share of every class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    rows = (bunch.data / PIXEL_MAX).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    train_rows, device_rows, train_labels, device_labels = train_test_split(
        rows, labels, test_size=0.5, random_state=seed, stratify=labels
    )
    return Digits(train_rows, train_labels, device_rows, device_labels)


def make_releases(digits: Digits, folder: Path, *, control: bool, seed: int) -> list[Release]:
    """Train the models and write models and data files.

    Args:
        digits: The data.
        folder: Where the files go.
        control: Make a good 1.2.0 instead of the bad one.
        seed: For the training.
    """
    labelled, unlabelled = folder / "labelled.npz", folder / "devices.npz"
    np.savez(labelled, pixels=digits.train_rows, digit=digits.train_labels)
    np.savez(unlabelled, pixels=digits.device_rows)
    scale = 1.0 if control else BAD_PIXEL_MAX
    plans = [
        ("1.0.0", 48, 1.0, True, "trained on pixels 0..1"),
        ("1.1.0", 64, 1.0, True, "trained on pixels 0..1, a wider hidden layer"),
        ("1.2.0", 64, scale, False, f"trained on pixels 0..{scale:.0f}"),
    ]
    releases = []
    for number, (version, hidden, factor, has_labels, words) in enumerate(plans):
        model = folder / f"digits-{version}.skops"
        _train(digits, model, hidden=hidden, scale=factor, seed=seed + number)
        data = labelled if has_labels else unlabelled
        releases.append(Release(version, model, data, has_labels, words))
    return releases


def _train(digits: Digits, path: Path, *, hidden: int, scale: float, seed: int) -> None:
    import warnings

    import skops.io
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(hidden_layer_sizes=(hidden,), max_iter=60, random_state=seed)
    with warnings.catch_warnings():
        # Sixty passes are enough for the demo; the warning would only worry its reader.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(digits.train_rows * scale, digits.train_labels)
    skops.io.dump(model, path)
