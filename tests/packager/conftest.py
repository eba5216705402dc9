"""Models and rows that the packager's tests share, made once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

TRAINED = 898


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models trained on half of the digits, and rows of the other half."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 16
    network: Any = MLPClassifier((64, 32), max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(pixels[:TRAINED], labels[:TRAINED])
    forest = RandomForestClassifier(10, random_state=0).fit(pixels[:TRAINED], labels[:TRAINED])
    skops.io.dump(network, folder / "network.skops")
    skops.io.dump(forest, folder / "forest.skops")
    held = pixels[TRAINED:]
    np.savez(folder / "rows.npz", pixels=held, label=labels[TRAINED:])
    np.savez(folder / "unlabelled.npz", pixels=held)
    return folder
