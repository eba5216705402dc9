"""Train a small model on scikit-learn's digits: digits.skops, and rows to build with: digits.npz.

The model learns from one half of the digits. The other half goes into digits.npz, pixels scaled to
0..1 and the true digits beside them, so that `edgepack build` judges the model on rows that it has
never seen.
"""

from __future__ import annotations

import numpy as np
import skops.io
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

PIXEL_MAX = 16.0


def main() -> None:
    """Write both files into the current folder and say how good the model is."""
    digits = load_digits()
    pixels = (digits.data / PIXEL_MAX).astype(np.float32)
    train_pixels, pixels, train_labels, labels = train_test_split(
        pixels, digits.target, test_size=0.5, random_state=0, stratify=digits.target
    )
    model = MLPClassifier(hidden_layer_sizes=(64,), max_iter=400, random_state=0)
    model.fit(train_pixels, train_labels)
    skops.io.dump(model, "digits.skops")
    np.savez("digits.npz", pixels=pixels, digit=labels)
    print(f"digits.skops is right about {model.score(pixels, labels):.1%} of digits.npz")


if __name__ == "__main__":
    main()
